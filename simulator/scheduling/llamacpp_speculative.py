"""llama.cpp's server with speculation: the drafts of a slot follow its token in the batch.

A generating slot has 1 + k tokens in the batch; the cells of what was rejected are given back after the call. Where a
call is cut for want of cells it is never cut within a slot's drafts here, and where not one slot's fit the server gives
up as without drafts. That drafting stops early where the draft is unsure (``--draft-p-min``) is not modelled, nor are
fewer drafts at the end of a slot's context. Slots draft one after the other (assumed).
"""

from __future__ import annotations

from typing import Any

from simulator.errors import ConfigurationError
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.llamacpp import LlamaCpp
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import SpeculativeDecodeSet

__all__ = ["SpeculativeLlamaCpp"]


class SpeculativeLlamaCpp(LlamaCpp):
    """`LlamaCpp` whose generating slots check *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, **options: Any) -> None:
        super().__init__(**options)
        self.width = drafting.width
        if self.width > self.n_batch:
            raise ConfigurationError(
                f"speculation: {self.width} tokens of a slot exceed n_batch {self.n_batch}"
            )
        self.decoding = SpeculativeDecodeSet(1, drafting, limit=self.n_ctx)

    def _decode_all(self, batch: Batch) -> Batch:
        super()._decode_all(batch)
        self._keep_accepted(batch, list(self.decoding.members))
        return batch

    def _advance(self, batch: Batch, decodes: list[Request]) -> None:
        super()._advance(batch, decodes)
        if decodes:
            self._keep_accepted(batch, decodes)

    def _keep_accepted(self, batch: Batch, decodes: list[Request]) -> None:
        """Every slot has a cell for its token; now also for what was accepted behind it."""
        for request in decodes:
            self.cells.grow(request.state.slot.index, self.decoding.gain(request) - 1)
        batch.width, batch.decode_context = self.width, self.decoding.attended
