"""Text Generation Inference with ``--speculate``: Medusa heads or n-grams.

The router reserves the drafts' slots with everything else at admission, prompt + output + speculate − 1 tokens, and
prompts are not cut (server/.../models/model.py: chunking needs speculate 0).
"""

from __future__ import annotations

from typing import Any

from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import SpeculativeDecodeSet
from simulator.scheduling.tgi import Tgi

__all__ = ["SpeculativeTgi"]


class SpeculativeTgi(Tgi):
    """`Tgi` whose running requests check *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, **options: Any) -> None:
        super().__init__(**options)
        self.drafted = drafting.width - 1
        self.decoding = SpeculativeDecodeSet(self.decoding.block_size, drafting)

    def _tokens(self, request: Request) -> int:
        return super()._tokens(request) + self.drafted

    def _blocks(self, request: Request) -> int:
        blocks = super()._blocks(request)
        return blocks + self._padded(self.drafted) // self.pool.block_size if self.padded_blocks else blocks

    def _run_batch(self, batch: Batch) -> None:
        super()._run_batch(batch)
        if batch.num_decodes:
            batch.width, batch.decode_context = self.decoding.width, self.decoding.attended

    def _leave(self, request: Request) -> None:
        if request in self.decoding:
            reserved = request.num_blocks
            self.decoding.leave(request)
            request.num_blocks = reserved  # at admission, whatever was checked since
        super()._leave(request)
