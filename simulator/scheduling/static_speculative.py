"""Speculation in libraries that run one sequence at a time: transformers' assisted generation, gpt-fast.

transformers drafts with an assistant model or by looking the text up (``prompt_lookup_num_tokens``), for a batch of one
only (generation/utils.py); that it stops drafting early where the assistant is unsure is not modelled. gpt-fast drafts
``speculate_k`` tokens, for which its cache has room behind the output (generate.py).
"""

from __future__ import annotations

from typing import Any

from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.speculative import SpeculativeDecodeSet
from simulator.scheduling.static import StaticBatch

__all__ = ["SpeculativeStaticBatch"]


class SpeculativeStaticBatch(StaticBatch):
    """`StaticBatch` of one sequence that checks *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, max_total_tokens: int, **options: Any) -> None:
        super().__init__(max_total_tokens=max_total_tokens - (drafting.width - 1), **options)
        self.decoding = SpeculativeDecodeSet(1, drafting)

    def _decode(self) -> Batch:
        batch = super()._decode()
        self._width = self.decoding.computed
        batch.width, batch.decode_context = self.decoding.width, self.decoding.attended
        return batch
