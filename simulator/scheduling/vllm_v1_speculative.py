"""vLLM's V1 scheduler with speculative decoding.

A decoding request has 1 + k tokens to compute, the last one and its drafts, and asks for slots for all of them; with a
draft that keeps KV of its own (EAGLE, MTP, a draft model) also for the k tokens that will be drafted behind them. What
is rejected is taken off its computed tokens again, the blocks stay. Deciding one step ahead, the scheduler counts every
draft of the step in flight as accepted, and leaves a request out as soon as the step in flight yields its last token
even if all drafts are rejected. EAGLE and MTP need the hidden state before every token they read, so that the last
block found in the prefix cache is computed again.

Read in vLLM at 00024d31 and 014b2350 (v1/core/sched/scheduler.py, async_scheduler.py); taken to hold for 0.33.0 and
0.11.2. One difference: a request for which less than 1 + k tokens of the budget are left waits a step here; vLLM trims
its drafts.
"""

from __future__ import annotations

import heapq
from typing import Any

from simulator.errors import ConfigurationError
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.base import Batch
from simulator.scheduling.blocks import BlockManager, Hit
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import SpeculativeDecodeSet
from simulator.scheduling.vllm_v1 import VllmV1

__all__ = ["SpeculativeVllmV1"]


class RecomputingBlocks(BlockManager):
    """A prefix cache of which the last block that a prompt finds is computed again."""

    def match(self, request: Request, max_tokens: int) -> Hit:
        whole = super().match(request, max_tokens)
        if not whole.blocks:
            return whole
        hit = super().match(request, (whole.blocks - 1) * self.block_size)
        hit.node = whole.node  # what may become longer is the whole match
        return hit


class SpeculativeVllmV1(VllmV1):
    """`VllmV1` whose decoding requests check *drafting*'s tokens."""

    decoding: SpeculativeDecodeSet

    def __init__(self, *, drafting: Drafting, **options: Any) -> None:
        super().__init__(**options)
        self.width = drafting.width
        self.lookahead = drafting.lookahead
        if self.max_num_seqs * self.width > self.max_num_batched_tokens:
            raise ConfigurationError(
                f"speculation: {self.max_num_seqs} sequences with {self.width} tokens each exceed "
                f"max_num_batched_tokens {self.max_num_batched_tokens}; max_num_seqs can be "
                f"{self.max_num_batched_tokens // self.width}"
            )
        self.decoding = SpeculativeDecodeSet(
            self.block_size, drafting, depth=self.depth, limit=self.max_model_len
        )
        if drafting.drops_last_hit:
            plain = self.blocks
            self.blocks = RecomputingBlocks(
                plain.num_blocks,
                plain.block_size,
                prefix_caching=plain.prefix_caching,
                unhashed_first=plain.unhashed_first,
            )

    # running, counted

    def _decode_only(self) -> Batch | None:
        decodes, need = self.decoding.count, self.decoding.blocks_next
        if not decodes or need > self.blocks.num_free or decodes * self.width > self.max_num_batched_tokens:
            return None
        if need:
            self.blocks.take(need)
        batch = Batch()
        self._check_drafts(batch)
        batch.repeatable = True
        return batch

    def _check_drafts(self, batch: Batch) -> None:
        """Every decoding request takes part in *batch*."""
        decoding = self.decoding
        decoding.advance()
        batch.num_decodes, batch.width = decoding.count, self.width
        batch.decode_context, batch.iteration = decoding.attended, decoding.iteration
        self._note_full()

    def _note_full(self) -> None:
        for request in self.decoding.full:
            heapq.heappush(self._limits, (self.decoding.iteration, request.order, request))

    def _run_counted(self, batch: Batch) -> int | None:
        decoding, blocks = self.decoding, self.blocks
        growth = decoding.blocks_next
        budget = self.max_num_batched_tokens - decoding.count * self.width
        chunks = self._chunks_counted(budget) if self._prefilling else ()
        if budget < 0 or chunks is None:
            return None
        need = growth
        for request, chunk in chunks:
            need += max(self._blocks(request.computed + chunk) - request.num_blocks, 0)
        if need > blocks.num_free:
            return None
        if decoding.count:
            if growth:
                blocks.take(growth)
            self._check_drafts(batch)
        for request, chunk in chunks:
            self.blocks.grow(request, self._slots(request.computed + chunk))
            self._compute(batch, request, chunk)
            budget -= chunk
        return budget

    def _slots(self, tokens: int) -> int:
        """Tokens for which a running prompt with *tokens* computed ones holds slots."""
        return min(tokens + self.lookahead, self.max_model_len)

    def _blocks(self, tokens: int) -> int:
        return -(-self._slots(tokens) // self.block_size)

    # running, one by one

    def _turn(self, request: Request, tokens: int, budget: int, threshold: int) -> int:
        if request in self.decoding:
            return self.width if self.width <= budget else 0
        return super()._turn(request, tokens, budget, threshold)

    def _has_room(self, request: Request, tokens: int) -> bool:
        if request in self.decoding:
            return self.decoding.needs_block(request) <= self.blocks.num_free
        return self._blocks(tokens) - request.num_blocks <= self.blocks.num_free

    def _grant(self, request: Request, tokens: int, chunk: int) -> None:
        if request not in self.decoding:
            self.blocks.grow(request, self._slots(tokens + chunk))
        elif need := self.decoding.grant(request):
            self.blocks.take(need)

    def _preempt(
        self, batch: Batch, victim: Request, decodes: dict[Request, None], chunks: dict[Request, int]
    ) -> int:
        decoded = victim in decodes
        given = super()._preempt(batch, victim, decodes, chunks)
        return self.width if decoded else given

    def _take_turns(self, batch: Batch, decodes: dict[Request, None], chunks: dict[Request, int]) -> None:
        super()._take_turns(batch, decodes, chunks)
        if decodes:
            batch.width, batch.decode_context = self.width, self.decoding.attended
            self._note_full()

    # leaving

    def _drain_limits(self) -> None:
        decoding, limits = self.decoding, self._limits
        while limits and limits[0][0] <= decoding.iteration:
            request = heapq.heappop(limits)[2]
            if request.phase >= 0 and decoding.certain(request):
                decoding.leave(request)

    def _retire(self, request: Request, turn: int = 0, *, for_good: bool = True) -> None:
        del self.running[request]
        if request.phase >= 0:
            known = self.decoding.settled(request)
            self.decoding.leave(request)
        else:
            self._prefilling.pop(request, None)
            known = request.computed + turn
        known = max(known, request.registered * self.block_size)
        self.blocks.retire(request, known, for_good=for_good)

    def repeats(self, batch: Batch, limit: int) -> int:
        return 1
