"""vLLM 0.6: the last V0 scheduler, prompts before decodes or, with chunked prefill, decodes before prompts.

Default: a step is prompts or decodes. Prompts go first while nothing is swapped, in order of arrival, up to
a token budget without padding. Chunked: running requests first (decodes, then the prompt in progress), then
swapped ones, then new prompts with what is left of the budget; the queue is rebuilt in that order, so new
prompts are the first victims.

*policy* ``priority`` (default mode only) sorts both queues and preempts running requests for a more urgent
head. *num_scheduler_steps* k decides once for k decode iterations: blocks are reserved for all of them and
a sequence that ends between keeps its place until the last. *scheduler_delay_factor* holds prompts back for
a multiple of the last prompt step.

With prefix caching a swapped sequence comes back with blocks of its own; the release shares cached ones
again. Not modelled: asynchronous output processing, which the release's engine has on and its recorded
scheduler off; it learns of an end one iteration late.

Read in vLLM 0.6.3 (core/scheduler.py, core/block_manager_v2.py); recorded decisions are reproduced step by
step.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.block_sizes import PAGED_ATTENTION
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import Device, System
from simulator.scheduling.vllm_v0_chunked import V0Chunked

__all__ = ["SYSTEMS", "VllmV0"]


class VllmV0(V0Chunked):
    """The policy of vLLM 0.6; argument names are its flags.

    *max_num_batched_tokens* defaults to 512 with chunked prefill, else to ``max(max_model_len, 2048)``.
    *num_cpu_blocks* is the swap space in blocks. *preemption_mode* None: recompute one sequence, swap
    several.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        num_cpu_blocks: int = 2048,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        max_model_len: int = 8192,
        enable_chunked_prefill: bool = False,
        enable_prefix_caching: bool = False,
        policy: str = "fcfs",
        preemption_mode: str | None = None,
        num_scheduler_steps: int = 1,
        scheduler_delay_factor: float = 0.0,
        watermark: float = 0.01,
        explicit: bool = False,
        track_ids: bool = False,
    ) -> None:
        self.num_steps = num_scheduler_steps
        if max_num_batched_tokens is None:
            max_num_batched_tokens = 512 if enable_chunked_prefill else max(max_model_len, 2048)
        super().__init__(
            num_gpu_blocks=num_gpu_blocks,
            num_cpu_blocks=num_cpu_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            watermark=watermark,
            enable_prefix_caching=enable_prefix_caching,
            explicit=explicit,
            track_ids=track_ids,
        )
        self.chunked = enable_chunked_prefill
        self.by_priority = policy == "priority" and not enable_chunked_prefill
        self.preemption_mode = preemption_mode
        self.delay_factor = scheduler_delay_factor
        self._check(policy)
        self._widest = self._touch_limit(1)
        self._sorted = True  # whether the running queue is in order of urgency
        self._num_unsorted = 0  # requests at the end of the waiting queue that are not; -1: some in front
        self._steps_left = 0  # iterations of the current decision still to come
        self._ended_early: list[Request] = []
        self._prompted_at: float | None = None  # when the last step was decided, if it had prompts
        self._prompt_latency = 0.0

    def _check(self, policy: str) -> None:
        if policy not in ("fcfs", "priority"):
            raise ConfigurationError(f"policy {policy!r}: must be fcfs or priority")
        if self.preemption_mode not in (None, "swap", "recompute"):
            raise ConfigurationError(f"preemption_mode {self.preemption_mode!r}: must be swap or recompute")
        if self.num_steps < 1:
            raise ConfigurationError(f"num_scheduler_steps {self.num_steps}: must be at least 1")
        if self.num_steps > 1 and self.chunked:
            raise ConfigurationError(f"num_scheduler_steps {self.num_steps}: not with enable_chunked_prefill")
        if not self.chunked and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigurationError(
                f"max_num_batched_tokens {self.max_num_batched_tokens}: without enable_chunked_prefill"
                f" at least max_model_len {self.max_model_len}"
            )
        if self.chunked and self.blocks.prefix_caching and self.max_num_batched_tokens % self.block_size:
            raise ConfigurationError(
                f"max_num_batched_tokens {self.max_num_batched_tokens}: with enable_prefix_caching"
                f" a multiple of block_size {self.block_size}"
            )
        if self.track_ids and self.preemption_mode == "swap":
            raise ConfigurationError("preemption_mode swap: block tables are not tracked on the host")

    def add(self, request: Request, now: float) -> None:
        if self.chunked and request.prompt_length > self.max_model_len:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens exceeds max_model_len {self.max_model_len}"
            )
        if self.preemption_mode == "recompute" and request.n > 1:
            raise ConfigurationError(f"n {request.n}: several samples cannot be preempted by recompute")
        super().add(request, now)
        if self._num_unsorted >= 0:
            self._num_unsorted += 1

    # one step

    def schedule(self, now: float) -> Batch | Wait | None:
        if not self.running and not self.waiting and not self.swapped:
            return None
        batch = Batch()
        if self._steps_left:
            self._steps_left -= 1
            self._count_decodes(batch)
        elif self.chunked:
            self._schedule_chunked(batch, now)
        else:
            self._schedule_default(batch, now)
        self._new_spans.clear()
        self._join(batch)
        batch.iteration = self.decoding.iteration
        batch.repeatable = self._is_repeatable(batch)
        return batch

    def _is_repeatable(self, batch: Batch) -> bool:
        if not batch.num_decodes or batch.prefills or batch.preempted or batch.stalled or self._prefilling:
            return False
        if batch.blocks_copied or batch.blocks_swapped_in or batch.rejected:
            return False
        if not self.waiting or self.num_steps > 1:
            return True
        if self.delay_factor or (self.by_priority and self._is_inverted(self.waiting[0])):
            return False
        return bool(self.swapped) or not self.by_priority or self._head_blocked()

    # default: prompts or decodes

    def _schedule_default(self, batch: Batch, now: float) -> None:
        if not self.swapped:
            self._admit(batch, now, self.max_num_batched_tokens, self._seats)
        if batch.prefills:
            return
        if self.by_priority:
            self._make_way(batch)
        num_forced = len(batch.preempted)
        self._decode(batch)
        if self.swapped and len(batch.preempted) == num_forced and not batch.blocks_swapped_out:
            self._return_swapped(batch, self.max_num_batched_tokens - batch.num_decodes, self._seats)
        if batch.preempted:
            self._num_unsorted = -1
        self._requeue()

    def _admit(self, batch: Batch, now: float, budget: int, seats: int) -> None:
        """Prompts from the head of the queue, until one does not fit."""
        if self._prompted_at is not None:
            self._prompt_latency = now - self._prompted_at
        alone = (
            self.chunked or not self.running
        )  # with chunked prefill the running queue is empty at this point
        while self.waiting and self._passed_delay(now, alone):
            leader = self.waiting[0]
            sequence = self._sole(leader)
            tokens = self._chunk(sequence, budget) if self.chunked else sequence.target
            fits = self._fits(leader)
            if tokens > self.max_model_len or fits is None:
                self._reject(batch, self.waiting.popleft(), self._reason(leader, tokens))
                continue
            seats += self._num_seats(leader)
            if not fits or not tokens or tokens > budget or seats > self.max_num_seqs:
                break
            self.waiting.popleft()
            self._compute(batch, self._start(batch, leader), tokens)
            self._sorted = False
            budget -= tokens
        self._prompted_at = now if batch.prefills else None

    def _fits(self, leader: Request) -> bool | None:
        target = self._sole(leader).target
        in_chunks = self.chunked and target > self.max_num_batched_tokens and self._recomputes(leader)
        if in_chunks and target % self.block_size and target > (self.blocks.num_blocks - 1) * self.block_size:
            return None  # it asks for one more block between chunks: the real engine restarts it for ever
        return super()._fits(leader)

    def _reason(self, leader: Request, tokens: int) -> str:
        if tokens > self.max_model_len:
            return f"a prompt of {tokens} tokens exceeds max_model_len {self.max_model_len}"
        return self._no_room(leader)

    def _passed_delay(self, now: float, alone: bool) -> bool:
        """Whether the oldest prompt has waited *delay_factor* times as long as the last prompt step took."""
        if not self.delay_factor or alone:
            return True
        oldest = min(request.arrival_time for request in self.waiting)
        return now - oldest > self.delay_factor * self._prompt_latency

    def _decode(self, batch: Batch) -> None:
        steps = self.num_steps
        if not self.explicit and self._all_fit(steps):
            self._append_all(batch, steps)
        else:
            queue = deque(self.running)
            while queue:
                self._append_in_order(batch, queue, queue.popleft(), steps)
        self._count_decodes(batch)
        if self.running:
            self._steps_left = steps - 1

    # priority

    def _make_way(self, batch: Batch) -> None:
        """Preempt less urgent running requests until the head of the queue could be admitted."""
        if not self._sorted:
            self.running = dict.fromkeys(sorted(self.running, key=_urgency))
            self._sorted = True
        if self.waiting:
            self._preempt_for(batch, self.waiting.popleft())
        self._sort_waiting()

    def _sort_waiting(self) -> None:
        waiting, unsorted = self.waiting, self._num_unsorted
        if unsorted < 0 or unsorted > len(waiting) // 2:
            self.waiting = deque(sorted(waiting, key=_urgency))
        elif unsorted:
            arrived = [waiting.pop() for _ in range(unsorted)]
            for request in reversed(arrived):
                insort(waiting, request, key=_urgency)
        self._num_unsorted = 0

    def _preempt_for(self, batch: Batch, head: Request) -> None:
        while self._is_inverted(head) and not self._admissible(head):
            self._preempt(batch, next(reversed(self.running)))
            self._requeue()
            self._num_unsorted = -1
        self.waiting.appendleft(head)
        if batch.preempted:
            batch.notes = {"forced": len(batch.preempted)}

    def _is_inverted(self, head: Request) -> bool:
        """Whether somebody less urgent than *head* runs."""
        return bool(self.running) and _urgency(next(reversed(self.running))) > _urgency(head)

    def _admissible(self, leader: Request) -> bool:
        seats = self._seats + self._num_seats(leader)
        tokens = self._sole(leader).target
        return (
            bool(self._fits(leader)) and seats <= self.max_num_seqs and tokens <= self.max_num_batched_tokens
        )

    def _head_blocked(self) -> bool:
        """Whether the head of the queue will be refused, and kept, by the next step too."""
        leader = self.waiting[0]
        fits = self._fits(leader)
        if fits is None or self._sole(leader).target > self.max_model_len:
            return False
        return not self._admissible(leader)

    # several iterations for one decision

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        self._ended_early.extend(ended)
        self._end_decision()

    def cancel(self, request: Request, now: float) -> None:
        super().cancel(request, now)
        self._end_decision()

    def _end_decision(self) -> None:
        """With its last iteration, or when nobody is left in it, a decision lets go of those that ended."""
        ended, decoding = self._ended_early, self.decoding
        if self._steps_left and (len(decoding) > len(ended) or decoding.members.keys() - ended):
            return
        for sequence in ended:
            if sequence.status is not FINISHED:
                self._end(sequence)
        ended.clear()
        self._steps_left = 0

    @property
    def num_running(self) -> int:
        """Admitted requests that have not ended, though their seats may stay taken for a while."""
        gone = set(self._ended_early)
        leaders = {self._leader(sequence) for sequence in gone}
        return len(self.running) - sum(gone.issuperset(self._members(leader)) for leader in leaders)

    def _num_slots(self, sequence: Request) -> int:
        reserved = self._steps_left if sequence.status is RUNNING else 0
        return super()._num_slots(sequence) + reserved

    def repeats(self, batch: Batch, limit: int) -> int:
        if self.num_steps == 1:
            return super().repeats(batch, limit)
        return min(limit, 1 + self._steps_left) if batch.repeatable and not self.explicit else 1

    def advance(self, batch: Batch, n: int) -> None:
        if self.num_steps == 1:
            super().advance(batch, n)
            return
        self._steps_left -= n
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes


def _urgency(request: Request) -> tuple[int, float]:
    return request.priority, request.arrival_time


def _defaults(device: Device) -> dict[str, int]:
    return {"max_num_seqs": 256}


SYSTEMS = (
    System(
        name="vllm-0.6",
        block_sizes=PAGED_ATTENTION,
        version="0.6.3",
        summary="prompts before decodes, or chunked; recompute for one sequence, swap for several",
        source="vLLM 0.6.3, core/scheduler.py, core/block_manager_v2.py",
        status="recorded",
        policy="vllm_v0:VllmV0",
        techniques=frozenset(("pipeline",)),
        defaults=_defaults,
        memory="vllm-0.19",
        traits="vllm-v0",
    ),
)
