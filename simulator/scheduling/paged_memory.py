"""Paged memory of vLLM's V0 schedulers: watermark, one free block per sequence, copy-on-write, prefix cache.

A prompt gets blocks for all its tokens when it is admitted, if a watermark (1 % of all) stays free after
it. A decoding request asks for one free block for each of its sequences, whether or not the next token
falls into a new one (0.2.7, block_manager.py: can_append_slot; 0.6.3, block_manager_v2.py: can_append_slots
touches a block).

Most iterations need no look at single requests: the decoding set knows how many blocks they step into, and
if that and the widest request's wish are free, everybody gets what it needs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.blocks import BlockManager, Span
from simulator.scheduling.groups import SequenceGroup, Sharing
from simulator.scheduling.request import Request
from simulator.scheduling.swap import SwapSpace

__all__ = ["PagedMemory"]


class PagedMemory(Scheduler):
    """Blocks of requests and of the sequences they fork into; queues and turns are a subclass's."""

    forks: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        num_cpu_blocks: int,
        block_size: int,
        max_num_seqs: int,
        watermark: float,
        enable_prefix_caching: bool,
        explicit: bool,
        track_ids: bool,
    ) -> None:
        super().__init__(max_num_seqs=max_num_seqs, block_size=block_size, explicit=explicit or track_ids)
        self.block_size = block_size
        self.track_ids = track_ids
        self.blocks = BlockManager(
            num_gpu_blocks, block_size, prefix_caching=enable_prefix_caching, track_ids=track_ids
        )
        self.watermark_blocks = int(watermark * num_gpu_blocks)
        self.swap = SwapSpace(num_cpu_blocks)
        self.sharing = Sharing(self.blocks)
        self._prefilling: dict[Request, None] = {}
        self._widest = 1  # most blocks that one request may ask for at once
        self._uncopied: dict[Request, None] = {}  # groups that forked and have not written since
        self._new_spans: set[Span] = set()  # content whose KV this step computes

    def _touch_limit(self, size: int) -> int:
        """Most free blocks that *size* sequences may ask for before one decode iteration."""
        return size

    # requests and their sequences

    @staticmethod
    def _members(leader: Request) -> Collection[Request]:
        """The sequences of a request that have not ended."""
        group: SequenceGroup | None = leader.group
        return (leader,) if group is None else group.live

    def _sole(self, leader: Request) -> Request:
        """The only sequence of a request that is to be computed as a prompt."""
        return next(iter(self._members(leader)))

    @staticmethod
    def _leader(sequence: Request) -> Request:
        group: SequenceGroup | None = sequence.group
        return sequence if group is None else group.leader

    @staticmethod
    def _num_seats(leader: Request) -> int:
        group: SequenceGroup | None = leader.group
        return 1 if group is None else group.seats

    # admission

    def _fits(self, leader: Request) -> bool | None:
        """Whether the prompt gets its blocks now; None: never. The prefix cache does not count (0.6.3)."""
        need = -(-self._sole(leader).target // self.block_size)
        if self.blocks.num_blocks - need < self.watermark_blocks:
            return None
        return self.blocks.num_free - need >= self.watermark_blocks

    def _no_room(self, leader: Request) -> str:
        return (
            f"{self._sole(leader).target} tokens never fit in {self.num_blocks} blocks of {self.block_size}"
            f" with {self.watermark_blocks} kept free"
        )

    def _reuse(self, sequence: Request) -> None:
        """Share cached blocks. Those that this step fills are shared but computed again; so is the last."""
        hit = self.blocks.match(sequence, sequence.target)
        self.blocks.touch(sequence, hit)
        known = hit.blocks
        for span, lo, _ in hit.parts:
            if span in self._new_spans:
                known = lo
                break
        sequence.cached_tokens = min(known, (sequence.target - 1) // self.block_size) * self.block_size

    def _offer(self, sequence: Request) -> None:
        """Full blocks are matchable from their allocation on."""
        before = sequence.registered
        self.blocks.register(sequence, sequence.target)
        self._new_spans.update(span for span, _, hi in sequence.held if hi > before)

    # forks

    def fork(self, parent: Request, id: str | None = None) -> Request:
        """A new sequence of *parent*'s group that shares everything with it and decodes beside it.

        For beam search the executor calls this, and `drop`, after a batch has run and before its `commit`.
        """
        tokens = self.decoding.tokens(parent)
        self.decoding.leave(parent)
        group: SequenceGroup = parent.group
        child = group.child(parent, id=id)
        self.sharing.fork(parent, child, tokens)
        self.decoding.join(parent)
        self.decoding.join(child)
        if tokens % self.block_size:
            self._uncopied[group.leader] = None
        if len(group.live) > group.size:
            self._widest = max(self._widest, self._touch_limit(len(group.live)))
        return child

    # slots for the next tokens

    def _can_append(self, leader: Request) -> bool:
        """One free block for each sequence, needed or not."""
        return len(self._members(leader)) <= self.blocks.num_free

    def _append(self, batch: Batch, leader: Request, steps: int = 1) -> None:
        """Slots for the next *steps* tokens of every sequence of *leader*."""
        self._uncopied.pop(leader, None)
        for sequence in self._members(leader):
            tokens = self._num_tokens(sequence)
            if sequence.state is not None and self.sharing.writes_shared(sequence, tokens):
                self.sharing.copy(sequence)
                batch.blocks_copied += 1
            sequence.num_blocks = self.sharing.own(sequence, tokens)
            self.blocks.grow(sequence, tokens + steps - self.sharing.start(sequence) * self.block_size)

    def _num_tokens(self, sequence: Request) -> int:
        return self.decoding.tokens(sequence) if sequence in self.decoding else sequence.computed

    def _num_slots(self, sequence: Request) -> int:
        """Tokens that *sequence* has blocks for: from its admission on, those of its whole prompt."""
        return max(self._num_tokens(sequence), sequence.target)

    def _all_fit(self, steps: int = 1) -> bool:
        """Whether every running request surely gets its slots, so that nobody's turn matters."""
        need = self.decoding.blocks_over(steps) + self._widest
        for leader in self._uncopied:
            need += len(self._members(leader))
        return need <= self.blocks.num_free

    def _append_all(self, batch: Batch, steps: int = 1) -> None:
        """The same as `_append` for all, without looking at each."""
        need = self.decoding.blocks_over(steps)
        if need:
            self.blocks.take(need)
        for leader in self._uncopied:
            for sequence in self._members(leader):
                if self.sharing.writes_shared(sequence, self.decoding.tokens(sequence)):
                    self.sharing.copy(sequence)
                    batch.blocks_copied += 1
        self._uncopied.clear()

    def _release(self, sequence: Request) -> None:
        """All blocks of *sequence* return; the full ones stay matchable."""
        slots = self._num_slots(sequence)
        sequence.num_blocks = self.sharing.own(sequence, slots)
        if self.blocks.prefix_caching and sequence.group is None:
            self.blocks.register(sequence, sequence.computed)
        self.blocks.free(sequence)
        if sequence.state is not None:
            self.sharing.release(sequence)

    # state

    @property
    def blocks_used(self) -> int:
        return self.blocks.num_blocks - self.blocks.num_free

    @property
    def num_blocks(self) -> int:
        return self.blocks.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.blocks.num_cached_free

    def waste(self) -> tuple[float, float, float, float]:
        reserved, tokens = 0, self.decoding.computed
        for leader in self._prefilling:
            sequence = self._sole(leader)
            reserved += sequence.target - sequence.computed
            tokens += sequence.computed
        shared = (self.sharing.num_saved + self.blocks.num_shared) * self.block_size
        held = self.blocks_used * self.block_size
        return reserved, held + shared - tokens - reserved, 0.0, shared
