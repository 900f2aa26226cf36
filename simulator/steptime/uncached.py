"""A model without a KV cache: every token costs a prefill of everything before it.

A decoding batch of b rows whose contexts sum to S tokens is b prompts of S/b tokens, of which only the last row of each
yields logits: 2 · parameters FLOPs per token of context instead of per new token (transformers' ``use_cache=False``).
"""

from __future__ import annotations

from typing import Any

from simulator.steptime.protocol import Laws
from simulator.steptime.steptime import StepTime
from simulator.steptime.traits import HostTraits

__all__ = ["UncachedStepTime"]


class UncachedStepTime(StepTime):
    """`StepTime` that computes whole contexts; rows of a batch are equally long, as padding makes them."""

    def recast(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> tuple[int, int, Any]:
        if not num_decodes:
            return 0, 0, prefills
        return 0, 0, [*prefills, *[(-(-decode_context // num_decodes), 0)] * num_decodes]

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return super().seconds(*self.recast(num_decodes, decode_context, prefills))

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]

    def breakdown(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> dict[str, float]:
        return super().breakdown(*self.recast(num_decodes, decode_context, prefills))

    def _with(self, laws: Laws, traits: HostTraits) -> StepTime:
        parts = (self.parallelism, traits, self.precision, self.kernels)
        return UncachedStepTime(self.model, laws, *parts)

    def _at_peak(self) -> StepTime:
        traits = HostTraits(layer_overhead_s=0.0)
        return UncachedStepTime(self.model, self._ideal_laws, self.parallelism, traits, self.precision)
