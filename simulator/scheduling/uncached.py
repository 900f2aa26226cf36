"""transformers' ``generate(use_cache=False)``: a static batch that keeps no keys and values.

Every step runs the whole rectangle, prompt and output so far of every row, through the model again. Decisions are those
of the batch with a cache; what limits its size is the memory of one forward's activations, given as *max_total_tokens*.
"""

from __future__ import annotations

from simulator.scheduling.static import StaticBatch

__all__ = ["UncachedBatch"]


class UncachedBatch(StaticBatch):
    """`StaticBatch` whose rows hold no KV between steps."""

    @property
    def blocks_used(self) -> int:
        return 0

    def waste(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 0.0, 0.0
