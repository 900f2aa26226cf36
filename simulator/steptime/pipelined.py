"""A pipeline that is kept full: as many micro-batches are in flight as there are stages.

A sequence cannot take its next step before the last one has left the final stage, so a batch is dealt into *pp*
micro-batches that follow each other through the stages (vLLM: ``max_concurrent_batches`` = pp; TensorRT-LLM: micro-
batches; Orca, OSDI 2022: up to ``n_workers`` batches in flight). A stage is busy with one of them for 1/pp of its way
through all stages, so that a round of all pp of them takes

    round = T(largest micro-batch),   T: one after the other through all stages

instead of T(whole batch). Decoding rows are dealt evenly; prompts by length, the longest first, each into the
micro-batch that has least, and none is cut unless it exceeds the token budget of one. A batch of one gains nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from simulator.steptime.protocol import Laws
from simulator.steptime.steptime import Prefills, StepTime
from simulator.steptime.traits import HostTraits

__all__ = ["PipelinedStepTime"]


class PipelinedStepTime(StepTime):
    """`StepTime` of rounds of pp micro-batches of at most *budget* tokens each."""

    def __init__(self, budget: int, *parts: Any) -> None:
        super().__init__(*parts)
        self.budget = budget

    def recast(
        self, num_decodes: int, decode_context: int, prefills: Prefills = ()
    ) -> tuple[int, int, Prefills]:
        """The largest micro-batch."""
        rows = -(-num_decodes // self.parallelism.pp)
        context = -(-decode_context * rows // num_decodes) if rows else 0
        return rows, context, self._largest(prefills) if prefills else ()

    def _largest(self, prefills: Prefills) -> Prefills:
        dealt: list[list[tuple[int, int]]] = [[] for _ in range(self.parallelism.pp)]
        tokens = [0] * len(dealt)
        for chunk, context in sorted(self._cut(prefills), reverse=True):
            least = tokens.index(min(tokens))
            dealt[least].append((chunk, context))
            tokens[least] += chunk
        return dealt[tokens.index(max(tokens))]

    def _cut(self, prefills: Prefills) -> list[tuple[int, int]]:
        """Chunks longer than a micro-batch, in pieces."""
        pieces: list[tuple[int, int]] = []
        for chunk, context in prefills:
            done = 0
            while chunk - done > self.budget:
                pieces.append((self.budget, context + done))
                done += self.budget
            pieces.append((chunk - done, context + done))
        return pieces

    def seconds(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        return super().seconds(*self.recast(num_decodes, decode_context, prefills))

    def segment(self, num_decodes: int, decode_context: int, n: int) -> Any:
        rows, context, _ = self.recast(num_decodes, decode_context)
        return super().segment(rows, context, n)

    def breakdown(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> dict[str, float]:
        return self._one.breakdown(*self.recast(num_decodes, decode_context, prefills))

    @cached_property
    def _one(self) -> StepTime:
        """One micro-batch alone."""
        return StepTime(self.model, self.laws, self.parallelism, self.traits, self.precision, self.kernels)

    def with_laws(self, laws: Laws) -> StepTime:
        parts = (self.parallelism, self.traits, self.precision, self.kernels)
        return PipelinedStepTime(self.budget, self.model, laws, *parts)

    def _at_peak(self) -> StepTime:
        traits = HostTraits(layer_overhead_s=0.0)
        parts = (self.model, self._ideal_laws, self.parallelism, traits, self.precision)
        return PipelinedStepTime(self.budget, *parts)
