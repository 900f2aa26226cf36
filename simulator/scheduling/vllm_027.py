"""vLLM 0.2.7, the release of the PagedAttention paper: a step is prompts or decodes, prompts are padded.

Prompts first, while nothing is swapped, strictly in order of arrival. A prompt batch is a rectangle: its
longest prompt times their number must fit ``max_num_batched_tokens`` and the padding must not exceed
``max_paddings``. Otherwise all running requests decode, the oldest first; if nobody was preempted, swapped
ones return as far as blocks and seats allow.

Beam search (``SequenceGroup(request, best_of, beam=True)``): the group keeps ``best_of`` seats and is
always swapped; the executor calls `fork` and `drop` between a batch and its commit, as its scores say.

Read in vLLM 0.2.7 (core/{scheduler,policy,block_manager}.py); recorded decisions are reproduced step by step.
"""

from __future__ import annotations

from collections import deque

from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.block_sizes import PAGED_ATTENTION
from simulator.scheduling.paged import PagedScheduler
from simulator.scheduling.request import Request
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "Vllm027"]


class Vllm027(PagedScheduler):
    """The policy of vLLM 0.2.7; argument names are its flags.

    *max_num_batched_tokens* defaults to ``max(max_model_len, 2048)``. *num_cpu_blocks* is the swap space in
    blocks.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        num_cpu_blocks: int = 2048,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        max_model_len: int = 2048,
        max_paddings: int = 256,
        watermark: float = 0.01,
        explicit: bool = False,
        track_ids: bool = False,
    ) -> None:
        super().__init__(
            num_gpu_blocks=num_gpu_blocks,
            num_cpu_blocks=num_cpu_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens or max(max_model_len, 2048),
            max_model_len=max_model_len,
            watermark=watermark,
            explicit=explicit,
            track_ids=track_ids,
        )
        if self.max_num_batched_tokens < max_model_len:
            raise ConfigurationError(
                f"max_num_batched_tokens {max_num_batched_tokens}: at least max_model_len {max_model_len}"
            )
        self.max_paddings = max_paddings
        self._sorted = True

    def schedule(self, now: float) -> Batch | Wait | None:
        if not self.running and not self.waiting and not self.swapped:
            return None
        batch = Batch()
        if self.waiting and not self.swapped:
            self._admit(batch)
        if not batch.prefills and not batch.rejected:
            self._decode(batch)
            if self.swapped and not batch.preempted:
                self._return_swapped(batch)
            self._requeue()
        self._join(batch)
        batch.iteration = self.decoding.iteration
        batch.repeatable = batch.num_decodes > 0 and not (
            batch.preempted or batch.blocks_copied or batch.blocks_swapped_in
        )
        return batch

    # prompts

    def _admit(self, batch: Batch) -> None:
        limit = min(self.max_model_len, self.max_num_batched_tokens)
        longest = total = 0
        while self.waiting:
            leader = self.waiting[0]
            length = self._sole(leader).target
            fits = self._fits(leader)
            if length > limit or fits is None:
                reason = (
                    f"a prompt of {length} tokens exceeds {limit}"
                    if length > limit
                    else self._no_room(leader)
                )
                self._reject(batch, self.waiting.popleft(), reason)
                continue
            longest_now = max(longest, length)
            padded = longest_now * (len(batch.prefills) + 1)
            if (
                not fits
                or padded > self.max_num_batched_tokens
                or self._seats + self._num_seats(leader) > self.max_num_seqs
                or padded - total - length > self.max_paddings
            ):
                break
            self.waiting.popleft()
            self._compute(batch, self._start(batch, leader), length)
            longest, total = longest_now, total + length
        batch.padded_tokens = longest * len(batch.prefills) - total
        self._sorted = False

    # decodes

    def _decode(self, batch: Batch) -> None:
        if not self.explicit and self._all_fit():
            self._append_all(batch)
        else:
            self._sort()
            queue = deque(self.running)
            while queue:
                self._append_in_order(batch, queue, queue.popleft())
        self._count_decodes(batch)

    def _sort(self) -> None:
        """Oldest first. Sorting when somebody's turn matters gives the order of sorting in every step."""
        if not self._sorted:
            self.running = dict.fromkeys(sorted(self.running, key=_arrival))
            self._sorted = True

    def _recomputes(self, leader: Request) -> bool:
        return self._num_seats(leader) == 1

    # swapping: what is shared stays shared on the host

    def _swap_size(self, leader: Request) -> int:
        members = self._members(leader)
        own = sum(self.sharing.own(sequence, self._num_slots(sequence)) for sequence in members)
        return own + sum(branch.end - branch.start for branch in self.sharing.branches(members))

    def _swap_touches(self, leader: Request) -> int:
        return self._swap_size(leader)

    def _leave_device(self, members: list[Request]) -> None:
        for sequence in members:
            sequence.num_blocks = self.sharing.own(sequence, sequence.computed)
            self.blocks.free(sequence)
        self.sharing.park(members)

    def _enter_device(self, members: list[Request]) -> None:
        self.sharing.unpark(members)
        for sequence in members:
            self.blocks.grow(sequence, self.sharing.own(sequence, sequence.computed) * self.block_size)

    def _return_swapped(self, batch: Batch) -> None:
        if len(self.swapped) > 1:
            self.swapped = deque(sorted(self.swapped, key=_arrival))
        while self.swapped:
            leader = self.swapped[0]
            need = self._swap_size(leader) + len(self._members(leader))
            if self.blocks.num_free - need < self.watermark_blocks:
                if not self.running:  # all blocks are free: the real engine waits for ever here
                    self._drop_swapped(batch, self.swapped.popleft(), need)
                return
            if self._seats + self._num_seats(leader) > self.max_num_seqs:
                return
            self._swap_in(batch, self.swapped.popleft())
            self._resume(batch, leader)
            self._sorted = False


def _arrival(request: Request) -> float:
    return request.arrival_time


def _defaults(device: Device) -> dict[str, int]:
    return {"max_num_seqs": 256, "max_paddings": 256}


SYSTEMS = (
    System(
        name="vllm-0.2",
        block_sizes=PAGED_ATTENTION,
        version="0.2.7",
        summary="padded prompt batches before decodes; recompute for one sequence, swap for several",
        source="vLLM 0.2.7, core/{scheduler,policy,block_manager}.py",
        status="recorded",
        policy="vllm_027:Vllm027",
        defaults=_defaults,
        memory="vllm-0.19",
        traits="vllm-v0",
    ),
)
