"""What vLLM's V0 schedulers do to requests: admit, decode, preempt, swap, end.

Three queues: waiting, running, swapped. Where a running request finds no free block, the last of the
running ones is preempted: a single sequence loses its blocks and is computed again (recompute), several
move to the host (swap) and return, before any new prompt, when there is room. Which queue goes first is a
release's own matter.

Sources: vLLM 0.2.7 and 0.6.3, core/scheduler.py; Kwon et al., SOSP 2023, sec. 4.5.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.paged_memory import PagedMemory
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, SWAPPED, Request

__all__ = ["PagedScheduler"]


class PagedScheduler(PagedMemory):
    """Queues and what happens to them; a subclass decides in which order.

    ``running``, ``waiting`` and ``swapped`` hold requests (leaders of their groups); `DecodeSet` and
    `Batch` hold sequences. A sequence that was swapped in is in ``prefills`` of that batch, with one token.
    *num_cpu_blocks* is the swap space.
    """

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
        super().__init__(
            num_gpu_blocks=num_gpu_blocks,
            num_cpu_blocks=num_cpu_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            watermark=watermark,
            enable_prefix_caching=enable_prefix_caching,
            explicit=explicit,
            track_ids=track_ids,
        )
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigurationError(
                f"max_num_batched_tokens {max_num_batched_tokens}: at least max_num_seqs {max_num_seqs}"
            )
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.waiting: deque[Request] = deque()
        self.swapped: deque[Request] = deque()
        self._seats = 0  # sequences that running requests count for
        self._recomputed: list[Request] = []  # preempted in this step, the last one of the queue first

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

    # admission

    def _reject(self, batch: Batch, leader: Request, reason: str) -> None:
        for sequence in self._members(leader):
            sequence.status = FINISHED
        batch.rejected.append((leader, reason))

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

    def _compute(self, batch: Batch, sequence: Request, chunk: int) -> None:
        """*sequence* computes its next *chunk* tokens, less what the cache has, but one at least."""
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

    # decoding

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
        """Recomputed requests return to the front of the queue, the last victim first: as they arrived."""
        self.waiting.extendleft(self._recomputed)
        self._recomputed.clear()

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
        """A request just swapped in computes its pending tokens in this very step, then decodes again."""
        self._append(batch, leader, steps)
        for sequence in self._members(leader):
            sequence.target = sequence.computed + 1
            self._compute(batch, sequence, 1)
        notes: dict[str, Any] = batch.notes or {}
        batch.notes = notes | {"resumed": [*notes.get("resumed", ()), *self._members(leader)]}

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

    def drop(self, sequence: Request) -> None:
        """A beam is given up: its own blocks return."""
        self._end(sequence)

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

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.swapped)
