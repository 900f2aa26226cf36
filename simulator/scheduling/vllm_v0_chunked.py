"""Chunked prefill of vLLM 0.6: decodes first, prompts in what is left of the token budget.

The running queue holds decodes and the prompt in progress; a request that the budget does not reach stays
where it is, in front. After the step the queue is rebuilt: those left out, those swapped in, decodes,
prompts, new prompts. So new prompts are the first victims.

Read in vLLM 0.6.3 (core/scheduler.py, ``_schedule_chunked_prefill``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque

from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v0_memory import V0Memory

__all__ = ["V0Chunked"]


class V0Chunked(V0Memory):
    """A step of decodes and chunks."""

    @abstractmethod
    def _admit(self, batch: Batch, now: float, budget: int, seats: int) -> None:
        """New prompts within *budget* tokens, beside *seats* sequences."""

    def _schedule_chunked(self, batch: Batch, now: float) -> None:
        if not self.explicit and self._chunked_all_fit():
            budget, seats, left = self._run_all(batch)
        else:
            budget, seats, left = self._run_in_order(batch)
        if self.swapped and not batch.preempted:
            prompts = {leader for leader in self.swapped if self._is_prompt(leader)}
            returned = self._return_swapped(batch, budget, seats)
            budget -= sum(returned.values())
            seats += sum(self._num_seats(leader) for leader in returned)
            first = sorted(returned, key=prompts.__contains__)  # stable: decodes before prompts
            self.running = dict.fromkeys((*left, *first, *self.running))
        self._admit(batch, now, budget, seats)
        self._requeue()

    def _chunked_all_fit(self) -> bool:
        """Whether everybody gets a turn: the one prompt in progress comes last and the budget reaches it."""
        spare = self.max_num_batched_tokens - len(self.decoding)
        if self._prefilling:
            leader = next(iter(self._prefilling))
            if len(self._prefilling) > 1 or leader is not next(reversed(self.running)):
                return False
            spare = self._chunk(self._sole(leader), spare) - 1
        return spare >= 0 and self._all_fit()

    def _run_all(self, batch: Batch) -> tuple[int, int, list[Request]]:
        self._append_all(batch)
        self._count_decodes(batch)
        budget = self.max_num_batched_tokens - batch.num_decodes
        for leader in list(self._prefilling):
            sequence = self._sole(leader)
            chunk = self._chunk(sequence, budget)
            self._compute(batch, sequence, chunk)
            budget -= chunk
        return budget, self._seats, []

    def _run_in_order(self, batch: Batch) -> tuple[int, int, list[Request]]:
        budget, seats = self.max_num_batched_tokens, 0
        chunks: dict[Request, int] = {}
        decodes: list[Request] = []
        queue = deque(self.running)
        while queue:
            leader = queue[0]
            tokens = self._new_tokens(leader, budget)
            if not tokens:
                break
            queue.popleft()
            if not self._append_in_order(batch, queue, leader):
                continue
            if leader in self._prefilling:
                chunks[leader] = tokens
            else:
                decodes.append(leader)
            budget -= tokens
            seats += self._num_seats(leader)
        self._count_decodes(batch, queue)
        for leader, chunk in chunks.items():
            self._compute(batch, self._sole(leader), chunk)
        self.running = dict.fromkeys((*queue, *decodes, *chunks))
        return budget, seats, list(queue)

    def _new_tokens(self, leader: Request, budget: int) -> int:
        if leader in self._prefilling:
            return self._chunk(self._sole(leader), budget)
        size = len(self._members(leader))
        return size if size > 1 else min(1, budget)

    def _chunk(self, sequence: Request, budget: int) -> int:
        """Prompt tokens within *budget*; whole blocks if prompts may share them."""
        left = sequence.target - sequence.computed
        if left <= budget:
            return left
        return budget - budget % self.block_size if self.blocks.prefix_caching else budget

    def _append(self, batch: Batch, leader: Request, steps: int = 1) -> None:
        if leader not in self._prefilling:  # a prompt has all its blocks
            super()._append(batch, leader, steps)
