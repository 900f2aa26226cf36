"""Whole steps: random workloads through the engine's own scheduler and runner, every step timed with its batch.

A round is a dozen requests that arrive while others decode, so that its steps are prefills, mixed batches
and decodes of many sizes, as in serving; what a step takes beyond its operators is the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from engine.batch import BatchInput
from engine.llm import LLM, make_executor
from engine.params import SamplingParams
from engine.runner import ModelRunner

__all__ = ["StepRounds", "watch_batches"]

SPREAD = (0.05, 0.3, 1.0, 3.0)
"""Mean arrivals per step of successive rounds: from a trickle, which decodes, to a flood, which mixes."""


class StepRounds:
    """Runs rounds on *llm*, timed by *clock* (seconds)."""

    def __init__(self, llm: LLM, clock: Callable[[], float], seed: int = 0) -> None:
        self.llm, self.clock, self.seed = llm, clock, seed
        llm.runner.clock = clock

    def run(self, number: int) -> Iterator[dict[str, Any]]:
        """The steps of round *number*: its batch and its seconds."""
        rng = np.random.default_rng([self.seed, number])
        executor = make_executor(self.llm.settings, self.llm.runner)
        jobs = self._jobs(rng)
        batches = watch_batches(self.llm.runner)
        try:
            while jobs or executor.has_work:
                due = rng.poisson(SPREAD[number % len(SPREAD)]) if executor.has_work else 1
                for prompt, params in [jobs.pop() for _ in range(min(due, len(jobs)))]:
                    executor.add(prompt, params)
                batches.clear()
                start = self.clock()
                executor.step()
                seconds = self.clock() - start
                if len(batches) == 1:  # a step without a forward, or with several, says nothing about one
                    yield {**describe_batch(batches[0]), **self._phases(), "seconds": seconds}
        finally:
            del self.llm.runner.run

    def _phases(self) -> dict[str, Any]:
        timing = self.llm.runner.timings[-1]
        return {
            "graph": timing.graph,
            "phases": {
                "prepare": timing.prepare,
                "forward": timing.forward,
                "logits": timing.logits,
                "sample": timing.sample,
            },
        }

    def _jobs(self, rng: np.random.Generator) -> list[tuple[list[int], SamplingParams]]:
        """Prompts of log-uniform length up to half a context, answers of 4 to 32 tokens."""
        config, settings = self.llm.runner.decoder.config, self.llm.settings
        longest = settings.model_len(config)
        count = max(4, min(12, settings.max_num_seqs))
        lengths = np.exp(rng.uniform(np.log(4), np.log(longest / 2), count)).astype(int)
        outputs = np.exp(rng.uniform(np.log(4), np.log(min(32, longest / 2)), count)).astype(int)
        return [
            (rng.integers(0, config.vocab_size, length).tolist(), greedy(int(output)))
            for length, output in zip(lengths, outputs)
        ]


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly *max_tokens* tokens."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def watch_batches(runner: ModelRunner) -> list[BatchInput]:
    """A list that every batch *runner* runs is appended to; ``del runner.run`` ends it."""
    seen: list[BatchInput] = []
    run = runner.run

    def watched(batch: BatchInput) -> Tensor:
        seen.append(batch)
        return run(batch)

    runner.run = watched  # type: ignore[method-assign]
    return seen


def describe_batch(batch: BatchInput) -> dict[str, Any]:
    """Decodes with the sum and the longest of their contexts, prefills as [chunk, context before it]."""
    chunks = [int(b - a) for a, b in pairwise(batch.query_start)] if len(batch.prefill_lens) else []
    return {
        "decodes": batch.num_decodes,
        "decode_context": int(batch.decode_lens.sum()),
        "max_context": int(batch.decode_lens.max()) if batch.num_decodes else 0,
        "prefills": [[chunk, int(end) - chunk] for chunk, end in zip(chunks, batch.prefill_lens)],
    }
