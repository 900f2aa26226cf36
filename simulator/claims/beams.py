"""Beam search on vLLM 0.2.7's policy: which beams fork and which are dropped after every token.

The policy shares blocks between beams; which beam survives is decided by scores, that is by the model. What is
assumed here is that scores favour nobody: each of the next *k* beams descends from any of the present ones with
equal probability, independently (the Wright-Fisher model of descent, Wright, Genetics 16, 1931). It has no parameter.
Two beams then have a common past that ends *k* tokens ago on average.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Resolved
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_027 import Vllm027

__all__ = ["BeamRun", "run_beams"]

Ints = NDArray[np.int64]


@dataclass
class BeamRun:
    """What a run came to: its length in s, and ∫ blocks dt in block-seconds."""

    duration: float = 0.0
    finished: int = 0
    blocks_held: float = 0.0
    blocks_saved: float = 0.0

    @property
    def saving(self) -> float:
        """Blocks saved by sharing over the blocks there would be without (vLLM's paper, 6.3)."""
        return self.blocks_saved / (self.blocks_held + self.blocks_saved)


def run_beams(resolved: Resolved, prompt: Ints, output: Ints, width: int, seed: int = 0) -> BeamRun:
    """Serve requests that are all there at t = 0, each with *width* beams of its output length."""
    policy = resolved.scheduler(explicit=True)
    assert isinstance(policy, Vllm027)
    generator, run = np.random.default_rng(seed), BeamRun()
    for i, (tokens, length) in enumerate(zip(prompt.tolist(), output.tolist(), strict=True)):
        request = Request(f"r{i}", tokens, length, index=i)
        request.group = SequenceGroup(request, width, beam=True)
        policy.add(request, 0.0)
    while (batch := policy.schedule(run.duration)) is not None:
        assert not isinstance(batch, Wait)
        seconds = _seconds(resolved, batch)
        run.duration += seconds
        run.blocks_held += policy.blocks_used * seconds
        run.blocks_saved += policy.sharing.num_saved * seconds
        run.finished += _advance(policy, batch, output, generator, run.duration)
    return run


def _seconds(resolved: Resolved, batch: Batch) -> float:
    chunks = [(chunk, context) for _, chunk, context in batch.prefills]
    if batch.padded_tokens:
        chunks = [max(chunks)] * len(chunks)
    if not batch.num_decodes and not chunks:
        return 0.0
    return resolved.steptime.seconds(batch.num_decodes, batch.decode_context, chunks)


def _advance(policy: Vllm027, batch: Batch, output: Ints, generator: np.random.Generator, now: float) -> int:
    """Beams of every group that got tokens fork and are dropped, or end together; how many groups ended."""
    groups = dict.fromkeys(sequence.group for sequence in (*(batch.decodes or ()), *batch.joining))
    ended: list[Request] = []
    count = 0
    for group in groups:
        if policy.decoding.generated(next(iter(group.live))) >= output[group.leader.index]:
            ended += group.live
            count += 1
        else:
            _descend(policy, group, generator)
    policy.commit(batch, ended, now)
    return count


def _descend(policy: Vllm027, group: SequenceGroup, generator: np.random.Generator) -> None:
    """The next *size* beams choose their parents among the present ones."""
    present = list(group.live)
    children = Counter(generator.integers(0, len(present), group.size).tolist())
    for i, parent in enumerate(present):
        for _ in range(children[i] - 1):
            policy.fork(parent)
    for i, parent in enumerate(present):
        if not children[i]:
            policy.drop(parent)
