"""What vLLM's V0 schedulers have in common: paged memory with sharing, preemption and swapping.

Three queues of requests: waiting, running, swapped. A prompt gets blocks for all its tokens when it is admitted, and
admission keeps a watermark (1 %) of the blocks free. A decoding request then asks for one free block for each
of its sequences, whether or not it needs one; where that fails, the last of the running ones is preempted: a single
sequence loses its blocks and is computed again (recompute), several are moved to the host (swap).

Sources: vLLM 0.2.7 and 0.6.3 (core/scheduler.py, core/block_manager.py, core/block_manager_v2.py); SOSP 2023, sec. 4.5.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.blocks import BlockManager, Span
from simulator.scheduling.groups import SequenceGroup, Sharing
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, SWAPPED, Request
from simulator.scheduling.swap import SwapSpace

__all__ = ["PagedScheduler"]


class PagedScheduler(Scheduler):
    """Queues, blocks and what happens to them; a subclass decides in which order.

    ``running``, ``waiting`` and ``swapped`` hold requests (leaders of their groups); `DecodeSet` and
    `Batch` hold sequences. *num_cpu_blocks* is the swap space.
    """

    forks = True

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        num_cpu_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        watermark: float,
        enable_prefix_caching: bool = False,
        explicit: bool = False,
        track_ids: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_num_seqs, block_size=block_size, explicit=explicit or track_ids)
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigurationError(
                f"max_num_batched_tokens {max_num_batched_tokens}: must be at least max_num_seqs {max_num_seqs}"
            )
        self.block_size = block_size
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.track_ids = track_ids
        self.blocks = BlockManager(
            num_gpu_blocks, block_size, prefix_caching=enable_prefix_caching, track_ids=track_ids
        )
        self.watermark_blocks = int(watermark * num_gpu_blocks)
        self.swap = SwapSpace(num_cpu_blocks)
        self.sharing = Sharing(self.blocks)
        self.waiting: deque[Request] = deque()
        self.swapped: deque[Request] = deque()
        self._prefilling: dict[Request, None] = {}
        self._seats = 0  # sequences that running requests count for
        self._widest = 1  # most blocks that one request may ask for at once
        self._uncopied: dict[Request, None] = {}  # groups that forked and have not written since
        self._recomputed: list[Request] = []  # preempted in this step, the last one of the queue first
        self._new_spans: set[Span] = set()  # content whose KV this step computes

    # arrivals

    def add(self, request: Request, now: float) -> None:
        group: SequenceGroup | None = request.group
        if group is None and request.n > 1:
            group = request.group = SequenceGroup(request, request.n)
        if group is not None:
            self._check_group(group)
            self._widest = max(self._widest, self._touch_limit(group.size))
        room = self.max_model_len + 1 - request.prompt_length  # the sequence that grows beyond it is cut
        request.max_tokens = min(request.max_tokens, max(room, 1))
        self.waiting.append(request)

    def _check_group(self, group: SequenceGroup) -> None:
        if group.size > self.max_num_seqs:
            raise CapacityError(f"n {group.size}: at most max_num_seqs {self.max_num_seqs} sequences can run")
        if self.track_ids:
            raise ConfigurationError(f"n {group.size}: block tables are not tracked for several samples")

    def _touch_limit(self, size: int) -> int:
        """Most free blocks that *size* sequences may ask for before one decode iteration."""
        return size

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

    def _reject(self, batch: Batch, leader: Request, reason: str) -> None:
        for sequence in self._members(leader):
            sequence.status = FINISHED
        batch.rejected.append((leader, reason))

    def _no_room(self, leader: Request) -> str:
        return (
            f"{self._sole(leader).target} tokens never fit in {self.blocks.num_blocks} blocks of {self.block_size}"
            f" with {self.watermark_blocks} kept free"
        )

    def _start(self, batch: Batch, leader: Request) -> Request:
        """Admit *leader*: all its prompt's blocks are taken here."""
        sequence = self._sole(leader)
        blocks = self.blocks
        sequence.computed = sequence.cached_tokens = 0
        if blocks.prefix_caching:
            self._reuse(sequence)
        blocks.grow(sequence, sequence.target)
        if blocks.prefix_caching:
            self._offer(sequence)
        sequence.status = RUNNING
        batch.cached[sequence] = sequence.cached_tokens
        self.running[leader] = None
        self._seats += self._num_seats(leader)
        return sequence

    def _reuse(self, sequence: Request) -> None:
        """Share cached blocks. What this step computes is shared too but not yet computed; nor is the last block skipped."""
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

    def _compute(self, batch: Batch, sequence: Request, chunk: int) -> None:
        """*sequence* computes its next *chunk* tokens, less what the cache has; one token is always computed."""
        context = sequence.computed
        sequence.computed = end = context + chunk
        context = min(max(context, sequence.cached_tokens), end - 1)
        batch.prefills.append((sequence, end - context, context))
        leader = self._leader(sequence)
        if end < sequence.target:
            self._prefilling[leader] = None
        else:
            self._prefilling.pop(leader, None)

    def _join(self, batch: Batch) -> None:
        """Sequences whose prompt is complete decode from the next step on; samples fork here."""
        for sequence, _, _ in batch.prefills:
            if sequence.computed < sequence.target:
                continue
            sequence.generated += 1
            self.decoding.join(sequence)
            batch.joining.append(sequence)
            group: SequenceGroup | None = sequence.group
            if group is not None and not group.forked:
                group.forked = True
                if not group.beam:
                    for _ in range(group.size - 1):
                        batch.joining.append(self.fork(sequence))

    # forks and drops

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

    def drop(self, sequence: Request) -> None:
        """A beam is given up: its own blocks return."""
        self._end(sequence)

    # running

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

    def _count_decodes(self, batch: Batch, left_out: Iterable[Request] = ()) -> None:
        """One decode iteration of all decoding sequences but those of the requests *left_out*."""
        decoding = self.decoding
        stalled = [s for leader in left_out for s in self._members(leader) if s in decoding]
        batch.num_decodes = len(decoding) - len(stalled)
        if batch.num_decodes:
            decoding.advance()
            for sequence in stalled:
                decoding.stall(sequence)
            batch.stalled = stalled
            batch.decode_context = decoding.computed - sum(decoding.tokens(s) for s in stalled)
        if self.explicit:
            missing = set(stalled)
            batch.decodes = [s for s in decoding.members if s not in missing]

    def _append_in_order(self, batch: Batch, queue: deque[Request], leader: Request, steps: int = 1) -> bool:
        """Slots for *leader*, at the cost of the last of *queue*, or of itself. False: it is preempted."""
        while not self._can_append(leader):
            victim = queue.pop() if queue else leader
            self._preempt(batch, victim)
            if victim is leader:
                return False
        self._append(batch, leader, steps)
        return True

    # preemption

    @abstractmethod
    def _recomputes(self, leader: Request) -> bool:
        """Whether *leader* is preempted by recomputing; else it is swapped."""

    def _preempt(self, batch: Batch, leader: Request) -> None:
        members = list(self._members(leader))
        self._seats -= self._num_seats(leader)
        del self.running[leader]
        self._prefilling.pop(leader, None)
        self._uncopied.pop(leader, None)
        self.num_preemptions += 1
        batch.preempted.extend(members)
        for sequence in members:
            sequence.num_preemptions += 1
            if sequence in self.decoding:
                self.decoding.leave(sequence)
        if self._recomputes(leader):
            self._recomputed.append(leader)
            self._restart(members[0])
        else:
            self._swap_out(batch, leader, members)

    def _restart(self, sequence: Request) -> None:
        """Everything known of *sequence* is a prompt again."""
        self._release(sequence)
        sequence.status = PREEMPTED
        sequence.computed = 0
        sequence.target = sequence.prompt_length + sequence.generated

    def _requeue(self) -> None:
        """Recomputed requests return to the front of the queue, the last victim first: in order of arrival."""
        self.waiting.extendleft(self._recomputed)
        self._recomputed.clear()

    def _release(self, sequence: Request) -> None:
        """All blocks of *sequence* return; the full ones stay matchable."""
        slots = self._num_slots(sequence)
        sequence.num_blocks = self.sharing.own(sequence, slots)
        if self.blocks.prefix_caching and sequence.group is None:
            self.blocks.register(sequence, slots)
        self.blocks.free(sequence)
        if sequence.state is not None:
            self.sharing.release(sequence)

    # swapping

    def _swap_out(self, batch: Batch, leader: Request, members: list[Request]) -> None:
        count, touched = self._swap_size(leader), self._swap_touches(leader)
        self.swap.take(count, touched=touched)
        batch.blocks_swapped_out += count
        self._leave_device(members)
        for sequence in members:
            sequence.status = SWAPPED
        self.swapped.append(leader)

    @abstractmethod
    def _swap_size(self, leader: Request) -> int:
        """Blocks that move when *leader* is swapped."""

    @abstractmethod
    def _swap_touches(self, leader: Request) -> int:
        """Free blocks that swapping *leader* out asks for."""

    @abstractmethod
    def _leave_device(self, members: list[Request]) -> None:
        """Return the blocks of *members*."""

    @abstractmethod
    def _enter_device(self, members: list[Request]) -> None:
        """Take blocks for *members* again."""

    def _swap_in(self, batch: Batch, leader: Request) -> None:
        members = list(self._members(leader))
        count = self._swap_size(leader)
        self.swap.give(count)
        batch.blocks_swapped_in += count
        self._enter_device(members)
        self.running[leader] = None
        self._seats += self._num_seats(leader)
        for sequence in members:
            sequence.status = RUNNING
            batch.cached[sequence] = 0

    def _resume(self, batch: Batch, leader: Request, steps: int = 1) -> None:
        """A request just swapped in decodes in this very step."""
        self._append(batch, leader, steps)
        for sequence in self._members(leader):
            sequence.computed += 1
            sequence.generated += 1
            self.decoding.join(sequence)
            batch.joining.append(sequence)
            batch.num_decodes += 1
            batch.decode_context += sequence.computed
            if batch.decodes is not None:
                batch.decodes.append(sequence)

    def _drop_swapped(self, batch: Batch, leader: Request, need: int) -> None:
        """*leader* can never return: its swap space is free again."""
        self.swap.give(self._swap_size(leader))
        self._reject(
            batch,
            leader,
            f"swapped out, and {need} blocks to return never fit in {self.blocks.num_blocks}"
            f" with {self.watermark_blocks} kept free",
        )
        for sequence in self._members(leader):
            sequence.state = None

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for sequence in ended:
            if sequence.status is not FINISHED:
                self._end(sequence)

    def _end(self, sequence: Request) -> None:
        """A running sequence is complete."""
        leader = self._leader(sequence)
        before = self._num_seats(leader)
        if sequence in self.decoding:
            self.decoding.leave(sequence)
        self._release(sequence)
        sequence.status = FINISHED
        group: SequenceGroup | None = sequence.group
        if group is not None:
            del group.live[sequence]
            if group.live:
                self._seats -= before - group.seats
                return
        self._seats -= before
        del self.running[leader]
        self._prefilling.pop(leader, None)
        self._uncopied.pop(leader, None)

    def cancel(self, request: Request, now: float) -> None:
        """All sequences of *request*'s group go."""
        leader = self._leader(request)
        if leader in self.running:
            for sequence in list(self._members(leader)):
                self._end(sequence)
            return
        if leader in self.swapped:
            self.swapped.remove(leader)
            self.swap.give(self._swap_size(leader))
        else:
            self.waiting.remove(leader)
        for sequence in self._members(leader):
            sequence.state = None
            sequence.status = FINISHED

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        room = self.blocks.num_free - self._widest
        if not batch.repeatable or limit <= 1 or self.explicit or room < 0:
            return 1
        return 1 + self.decoding.iterations_within(room, limit - 1)

    def advance(self, batch: Batch, n: int) -> None:
        need = self.decoding.blocks_over(n)
        if need:
            self.blocks.take(need)
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.swapped)

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
