"""SGLang's scheduler with speculative decoding: chains or trees of drafts over the token pool.

A step of a request checks its drafts, and the slots of what was rejected return to the pool at once. Before it, memory
for all tokens that are checked and all that are drafted must be free (``decode_mem_cache_buf_multiplier``), or requests
are retracted. Without SGLANG_ENABLE_SPEC_V2 there is no pass ahead and no mixing of prompts with decodes, and 48
requests run at most unless stated (server_args.py, managers/scheduler.py).
"""

from __future__ import annotations

from typing import Any

from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.sglang import Sglang
from simulator.scheduling.sglang_budget import OutputReserve
from simulator.scheduling.speculative import SpeculativeDecodeSet

__all__ = ["SpeculativeSglang"]


class SpeculativeSglang(Sglang):
    """`Sglang` whose running requests check *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, **options: Any) -> None:
        super().__init__(**options)
        drafted = drafting.width - 1 if drafting.lookahead else 1
        room = drafting.width + drafted
        self.decoding = SpeculativeDecodeSet(self.pool.page_size, drafting, room=room, returns=True)

    def _expected(self) -> float:
        rows = ((request, self._outputs(request)) for request in self._in_order())
        return OutputReserve.exact(rows, self.new_token_ratio.current)

    def _advance(self, batch: Batch) -> None:
        decoding, pool = self.decoding, self.pool
        decoding.advance()
        pool.take(decoding.new_blocks * pool.page_size)
        batch.num_decodes, batch.width = len(decoding), decoding.width
        batch.decode_context = decoding.attended
        if self.explicit:
            batch.decodes = self._in_order()
