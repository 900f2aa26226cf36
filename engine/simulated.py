"""The engine without a model: the same scheduler, executor and server, on predicted step times.

A step lasts as long as a law says and not as long as this machine computes, so a load generator pointed at the
server meets a device that is not there. Time is the wall's: a busy device begins its next step where the last
one ended, so that the Python between two steps, which the law counts already, is not paid twice. The text is
random letters, and an answer has as many tokens as the client allows: nothing here knows where a model would stop.

With speculation the policy draws how many drafts each step accepts, as in a simulation, and a step hands out that many
tokens and the model's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.batch import BatchInput
from engine.executor import Executor
from engine.pages import Moves, OwnPages, SchedulerPages
from engine.params import SamplingParams
from engine.plan import Forward, Plan
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import SpeculativeDecodeSet

__all__ = ["PredictedDevice", "SimulatedExecutor"]

Seconds = Callable[[int, int, list[tuple[int, int]]], float]
"""Duration of a step: decodes, the sum of their contexts, prefills as (chunk, context before it)."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class PredictedDevice:
    """Takes the place of `engine.runner.ModelRunner`: sleeps for as long as *seconds* says."""

    def __init__(self, seconds: Seconds, vocab_size: int, block_size: int) -> None:
        self.seconds = seconds
        self.decoder = SimpleNamespace(config=SimpleNamespace(vocab_size=vocab_size), kernels=None)
        self.cache = SimpleNamespace(block_size=block_size)
        self.timings: deque[Any] = deque(maxlen=1)
        self.lag = 0.0
        """Largest time by which this process could not keep up with the device, s."""
        self._busy_until: float | None = None

    def run(self, batch: BatchInput) -> Tensor:
        """Pass the time of *batch*; the logits say nothing."""
        now = time.perf_counter()
        begin = now if self._busy_until is None else self._busy_until
        self._busy_until = begin + self.seconds(
            batch.num_decodes, int(batch.decode_lens.sum()), _chunks(batch)
        )
        self.lag = max(self.lag, now - self._busy_until)
        time.sleep(max(0.0, self._busy_until - now))
        return torch.zeros(len(batch.logit_rows), 1)

    def rest(self) -> None:
        """Nothing to run: the next step begins when it comes."""
        self._busy_until = None

    def move(self, moves: Moves) -> None:
        """Blocks move in no time."""

    def sampled(self) -> None:
        """The tokens are there."""

    def finish(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        self.rest()


class SimulatedExecutor(Executor):
    """`Executor` over a `PredictedDevice`; *scheduler* numbers its blocks (*numbered*) or only counts them."""

    def __init__(
        self,
        device: PredictedDevice,
        scheduler: Scheduler,
        *,
        numbered: bool,
        tokenizer: Tokenizer,
        num_host_blocks: int = 0,
        seed: int = 0,
    ) -> None:
        size = device.cache.block_size
        if numbered:
            pages: Any = SchedulerPages(scheduler.blocks.tables, size)  # type: ignore[attr-defined]
        else:
            pages = OwnPages(scheduler.num_blocks, size, num_host_blocks)
        super().__init__(device, scheduler, pages, tokenizer=tokenizer, seed=seed)  # type: ignore[arg-type]
        self.device = device
        self._dice = torch.Generator().manual_seed(seed)
        self._letters = letter_tokens(tokenizer)
        decoding = scheduler.decoding
        self._drafts = decoding if isinstance(decoding, SpeculativeDecodeSet) else None
        self._due: dict[Sequence, int] = {}
        """Output tokens that each sequence of the forward in flight will have, with speculation."""

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str | None = None,
        arrival_time: float | None = None,
    ) -> list[Sequence]:
        """As the engine's; probabilities of tokens there are none."""
        if params.logprobs is not None:
            raise ConfigurationError("logprobs: a simulated model has no probabilities")
        return super().add(prompt, params, request_id, arrival_time)

    def step(self) -> list[Sequence]:
        touched = super().step()
        if self.idle:
            self.device.rest()
        return touched

    def _plan(self, batch: Batch) -> Plan:
        plan = super()._plan(batch)
        if self._drafts is not None:
            for request in batch.joining:
                left = request.max_tokens - request.generated
                if left > 0:
                    self._drafts.steps(request, left)
        return plan

    def _rows(self, batch: Batch, plan: Plan, joining: set[Request]) -> Forward:
        if self._drafts is not None:
            members = [request for request in batch.decodes or () if request in self._drafts]
            self._due = {request.payload: self._drafts.generated(request) for request in members}
        return super()._rows(batch, plan, joining)

    def _deliver(self, forward: Forward) -> list[Sequence]:
        touched = super()._deliver(forward)
        for sequence in touched:
            while not sequence.finished and sequence.num_output < self._due.get(sequence, 0):
                letter = int(torch.randint(len(self._letters), (1,), generator=self._dice))
                self._append(sequence, int(self._letters[letter]), None, self.clock())
        return touched

    def _draw(self, forward: Forward, logits: Tensor, order: list[int]) -> None:
        targets = [target for i in order if (target := forward.targets[i]) is not None]
        forward.sampled = [(sequence, target.stop) for target in targets for sequence in target.sequences]
        if forward.sampled:
            drawn = torch.randint(len(self._letters), (len(forward.sampled),), generator=self._dice)
            forward.tokens = self._letters[drawn]
        forward.logits = logits


def letter_tokens(tokenizer: Tokenizer) -> Tensor:
    """Ids of single letters, int64: a token of its own text each, so that a client sees every token as it comes."""
    last = [(letter, tokenizer.encode(letter)[-1]) for letter in LETTERS]
    found = [token for letter, token in last if tokenizer.decode([token]).strip() == letter]
    if not found:
        raise ConfigurationError("tokenizer: no letter from a to z is a token of its own")
    return torch.tensor(found)


def _chunks(batch: BatchInput) -> list[tuple[int, int]]:
    lengths = [int(b - a) for a, b in pairwise(batch.query_start)]
    return [(length, int(end) - length) for length, end in zip(lengths, batch.prefill_lens)]
