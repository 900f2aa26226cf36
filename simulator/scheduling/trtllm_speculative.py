"""TensorRT-LLM's scheduler with draft tokens.

A generating request takes 1 + k of ``max_num_tokens`` and, under maximum utilisation, blocks for as many tokens, never
beyond its last possible one; what is guaranteed to completion stays the same (batch_manager: capacityScheduler,
microBatchScheduler). Slots of rejected tokens are written again by the next step.
"""

from __future__ import annotations

from typing import Any

from simulator.errors import ConfigurationError
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import SpeculativeDecodeSet
from simulator.scheduling.trtllm import TensorRtLlm
from simulator.scheduling.trtllm_blocks import ReuseBlock

__all__ = ["SpeculativeTensorRtLlm"]


class SpeculativeTensorRtLlm(TensorRtLlm):
    """`TensorRtLlm` whose generating requests check *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, **options: Any) -> None:
        super().__init__(**options)
        self.width = drafting.width
        if self.width > self.max_num_tokens:
            raise ConfigurationError(
                f"speculation: a step of {self.width} tokens exceeds max_num_tokens {self.max_num_tokens}"
            )
        self.decoding = SpeculativeDecodeSet(
            self.blocks.block_size,
            drafting,
            limit=self.max_seq_len,
            room=self.width * self.lookahead,
            own_limit=True,
        )

    def _need(self, request: Request) -> int:
        return self.decoding.needs_block(request) if request in self.decoding else super()._need(request)

    def _released_by(self, request: Request, released: dict[ReuseBlock, int]) -> int:
        if request in self.decoding:
            request.num_blocks = self.decoding.held(request)
        return self.blocks.would_free(request, released)

    def _leave(self, request: Request) -> None:
        self.decoding.leave(request)
        self._owed -= self._to_completion(request)
        self._held -= request.num_blocks

    def _decode(self, batch: Batch, decodes: list[Request] | None) -> None:
        super()._decode(batch, decodes)
        if batch.num_decodes:
            batch.width, batch.decode_context = self.width, self.decoding.attended
