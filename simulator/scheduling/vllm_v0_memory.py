"""Memory of vLLM 0.6: the second block manager's rules for slots and swapping.

It counts the blocks that a sequence's next tokens fall into as if each had to be taken anew, reserves slots
for all iterations of one decision (``num_scheduler_steps``), and swaps every sequence by itself: samples
that shared blocks come back with blocks of their own.

Read in vLLM 0.6.3 (core/block_manager_v2.py, core/block/{block_table,naive_block}.py).
"""

from __future__ import annotations

from simulator.scheduling.base import Batch
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.paged import PagedScheduler
from simulator.scheduling.request import Request

__all__ = ["V0Memory"]


class V0Memory(PagedScheduler):
    """How many blocks 0.6 asks for; *num_steps* iterations are reserved at once."""

    num_steps = 1
    preemption_mode: str | None = None

    # slots

    def _can_append(self, leader: Request) -> bool:
        free = self.blocks.num_free
        return sum(self._touched(sequence) for sequence in self._members(leader)) <= free

    def _touched(self, sequence: Request) -> int:
        """Blocks that the next tokens of *sequence* fall into, those it has included."""
        slots, unseen = self._unseen(sequence)
        first = self.block_size - slots % self.block_size
        return 1 - (first - unseen - self.num_steps + 1) // self.block_size

    def _unseen(self, sequence: Request) -> tuple[int, int]:
        """(tokens with a slot, tokens without): those of the last decision have none yet."""
        tokens = self._num_tokens(sequence)
        if tokens < sequence.target:
            return sequence.target, 0
        unseen = 1 if tokens == sequence.target else self.num_steps
        return tokens + 1 - unseen, unseen

    def _touch_limit(self, size: int) -> int:
        return size * (1 - (2 - 2 * self.num_steps) // self.block_size)

    # swapping

    def _recomputes(self, leader: Request) -> bool:
        if self.preemption_mode is None:
            return self._num_seats(leader) == 1
        return self.preemption_mode == "recompute"

    def _swap_size(self, leader: Request) -> int:
        size = self.block_size
        return sum(-(-self._num_slots(sequence) // size) for sequence in self._members(leader))

    def _swap_touches(self, leader: Request) -> int:
        """Full blocks of every sequence, shared or not, and those its next tokens fall into."""
        size = self.block_size
        members = self._members(leader)
        return sum(self._unseen(sequence)[0] // size + self._touched(sequence) for sequence in members)

    def _leave_device(self, members: list[Request]) -> None:
        for sequence in members:
            self._release(sequence)

    def _enter_device(self, members: list[Request]) -> None:
        for sequence in members:
            self.blocks.grow(sequence, self._num_slots(sequence))

    def _return_swapped(self, batch: Batch, budget: int, seats: int) -> dict[Request, int]:
        """Swapped requests come back in order, until one does not fit; with the tokens they compute."""
        returned: dict[Request, int] = {}
        while self.swapped:
            leader = self.swapped[0]
            need = self._swap_touches(leader)
            tokens = self._returning_tokens(leader)
            if self._never_returns(need, tokens):
                self._drop_swapped(batch, self.swapped.popleft(), need)
                continue
            seats += self._num_seats(leader)
            if (
                self.blocks.num_free - need < self.watermark_blocks
                or tokens > budget
                or seats > self.max_num_seqs
            ):
                break
            self._swap_in(batch, self.swapped.popleft())
            self._restore(batch, leader, tokens)
            budget -= tokens
            returned[leader] = tokens
        return returned

    def _never_returns(self, need: int, tokens: int) -> bool:
        """Where only the watermark or the token budget stands against it the real engine waits for ever."""
        if self.blocks.num_blocks < need:
            return True
        hopeless = (
            self.blocks.num_blocks - need < self.watermark_blocks or tokens > self.max_num_batched_tokens
        )
        return hopeless and not self.running

    @staticmethod
    def _is_prompt(leader: Request) -> bool:
        """Whether a swapped request left in the middle of its prompt."""
        group: SequenceGroup | None = leader.group
        sequence = leader if group is None else next(iter(group.live))
        return sequence.computed < sequence.target

    def _returning_tokens(self, leader: Request) -> int:
        """Tokens that *leader* computes when it comes back; a prompt is not cut here."""
        members = self._members(leader)
        return sum(max(sequence.target - sequence.computed, 1) for sequence in members)

    def _restore(self, batch: Batch, leader: Request, tokens: int) -> None:
        if self._is_prompt(leader):
            self._compute(batch, self._sole(leader), tokens)
            return
        self._resume(batch, leader, self.num_steps)
        self._steps_left = self.num_steps - 1
        self._sorted = False
