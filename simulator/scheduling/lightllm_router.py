"""LightLLM's router: what waits, what is planned for the next iteration, and who is paused.

Planning is first come first served. A request is planned if, with it, the peak of future tokens stays below
the capacity; it joins the batch in the next iteration (server/router/manager.py, pause_strategy.py,
req_queue/chunked_prefill/impl.py and core/objs/req.py, LightLLM fc72ffab).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.lightllm_cache import PromptPool
from simulator.scheduling.lightllm_peak import PeakEstimate
from simulator.scheduling.request import PREEMPTED, RUNNING, Request

__all__ = ["RouterScheduler"]

ADDED_OUTPUT_LEN = 6


class RouterScheduler(Scheduler):
    """The policy over its token pool; keywords are LightLLM's server arguments.

    *max_total_token_num* tokens of KV; at most *running_max_req_size* requests run or are paused; a planned
    batch computes at most *batch_max_tokens* in one iteration (default twice the chunk and 256, at most
    *max_req_total_len*); prompts are cut into *chunked_prefill_size* tokens. With
    *disable_aggressive_schedule* planned requests join only every *router_max_wait_tokens* iterations.
    """

    def __init__(
        self,
        *,
        max_total_token_num: int,
        running_max_req_size: int = 1000,
        max_req_total_len: int = 16384,
        chunked_prefill_size: int = 4096,
        batch_max_tokens: int | None = None,
        router_token_ratio: float = 0.0,
        router_max_new_token_len: int = 1024,
        router_max_wait_tokens: int = 6,
        disable_dynamic_prompt_cache: bool = False,
        disable_aggressive_schedule: bool = False,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=running_max_req_size, block_size=1, explicit=explicit)
        if chunked_prefill_size < 1:
            raise ConfigurationError(f"chunked_prefill_size {chunked_prefill_size}: must be at least 1")
        self.pool = PromptPool(max_total_token_num, prompt_cache=not disable_dynamic_prompt_cache)
        self.max_req_total_len = max_req_total_len
        self.chunk = chunked_prefill_size
        self.batch_max_tokens = batch_max_tokens or min(max_req_total_len, 2 * chunked_prefill_size + 256)
        self.token_ratio = router_token_ratio
        self.max_new_token_len = router_max_new_token_len
        self.max_wait = router_max_wait_tokens
        self.aggressive = not disable_aggressive_schedule
        self.waiting: deque[Request] = deque()
        self.planned: list[Request] = []
        self.paused: dict[Request, None] = {}
        self._merged: list[Request] = []  # joined in this iteration, not yet looked up
        self._prefilling: dict[Request, None] = {}
        self._ended: dict[Request, None] = {}  # complete, their KV not yet released
        self._num_ended_waiting = 0  # of these, paused meanwhile and back in the queue
        self._peak = PeakEstimate()
        self._credits = 0  # batches that may prefill at once
        self._waited = 0  # iterations in which prompts waited for decodes
        self._since_merge = 0

    # arrivals

    def add(self, request: Request, now: float) -> None:
        prompt, outputs = request.prompt_length, request.max_tokens
        if prompt + outputs > self.max_req_total_len:
            raise CapacityError(
                f"a prompt of {prompt} and {outputs} output tokens exceed "
                f"max_req_total_len {self.max_req_total_len}"
            )
        held, left = self._future(request, 0, 0, busy=self.token_ratio <= 0)
        if held + left >= self.pool.capacity or min(prompt, self.chunk) > self.batch_max_tokens:
            raise CapacityError(
                f"a prompt of {prompt} tokens needs {held + left + 1} of {self.pool.capacity} tokens of KV"
            )
        self.pool.enter(request)
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.planned) - self._num_ended_waiting

    @property
    def num_running(self) -> int:
        return len(self.running) - len(self._ended) + self._num_ended_waiting

    def _note(self, batch: Batch, name: str, requests: Iterable[Request]) -> None:
        if self.explicit:
            if batch.notes is None:
                batch.notes = {}
            batch.notes[name] = [request.id for request in requests]

    def _merge(self, batch: Batch) -> None:
        """Planned requests join the batch."""
        self._merged = []
        if self.planned and (self.aggressive or self._since_merge >= self.max_wait):
            self._merged, self.planned = self.planned, []
            for request in self._merged:
                self.running[request] = None
                if request in self._ended:
                    self._num_ended_waiting -= 1
                else:
                    request.status = RUNNING
            self._credits += 1
            self._since_merge = 0
        self._note(batch, "admitted", self._merged)

    # pausing

    def _pause(self, batch: Batch) -> None:
        """While the next iteration does not fit, the last of the batch returns to the front of the queue."""
        paused = []
        while self.running and self._step_tokens() + self.pool.used > self.pool.capacity:
            request = next(reversed(self.running))
            del self.running[request]
            self._set_back(request)
            paused.append(request)
            self._since_merge = 0
        batch.preempted += [request for request in paused if request not in self._ended]
        self._note(batch, "paused", paused)

    def _set_back(self, request: Request) -> None:
        if request in self._merged:
            self._merged.remove(request)
        else:
            self._leave(request)
            self.pool.release(request, request.computed)
        request.computed = 0
        self.paused[request] = None
        self.waiting.appendleft(request)
        if request in self._ended:
            self._num_ended_waiting += 1
            return
        request.status = PREEMPTED
        request.target = request.prompt_length + request.generated
        request.num_preemptions += 1
        self.num_preemptions += 1

    def _leave(self, request: Request) -> None:
        """*request* neither decodes nor waits for a chunk any more."""
        self._prefilling.pop(request, None)
        if request in self.decoding:
            start, end = request.state
            self._peak.leave(start, end)
            self.decoding.leave(request)

    def _step_tokens(self) -> int:
        """Tokens that the batch and the planned requests compute next, a chunk each."""
        tokens, chunk = len(self.decoding), self.chunk
        for request in self._not_decoding():
            missing = request.prompt_length + request.generated - request.computed
            tokens += missing if missing < chunk else chunk
        return tokens

    def _not_decoding(self) -> list[Request]:
        """The rest of the batch, and what is planned for it; complete ones may be paused or planned again."""
        rest = [*self._prefilling, *self._merged, *self.planned]
        rest += [r for r in self._ended if r in self.running and r not in self._merged]
        return rest

    # planning

    def _future(self, request: Request, computed: int, generated: int, *, busy: bool) -> tuple[int, int]:
        """Tokens that *request* holds, and iterations it still runs; each chunk may wait for decodes."""
        limit = request.max_tokens
        if not busy and not request.ignore_eos:
            limit = min(limit, max(int(1.1 * generated), self.max_new_token_len))
        known = request.prompt_length + generated
        chunks = -(-(known - computed) // self.chunk)
        left = chunks * (self.max_wait + 1) + limit - generated - 1
        return known + 1, (left if left > 0 else 0) + ADDED_OUTPUT_LEN

    def _plan(self, batch: Batch) -> None:
        """Take waiting requests in order up to the first that does not fit, for the next iteration."""
        planned: list[Request] = []
        waiting = self.waiting
        if waiting and len(self.running) + len(self.planned) + len(self.paused) < self.max_num_seqs:
            busy = self._is_busy()
            tokens, others = self._step_tokens(), self._others(busy)
            while waiting:
                request = waiting[0]
                tokens += min(request.prompt_length + request.generated, self.chunk)
                others.append(self._future(request, request.computed, request.generated, busy=busy))
                if tokens > self.batch_max_tokens or not self._has_place(request, len(planned)):
                    break
                if self._peak_of(others, busy) >= self.pool.capacity:
                    break
                planned.append(waiting.popleft())
                self.paused.pop(request, None)
        self.planned += planned
        self._note(batch, "planned", planned)

    def _is_busy(self) -> bool:
        return self.pool.used / self.pool.capacity >= self.token_ratio

    def _has_place(self, request: Request, planned: int) -> bool:
        others = len(self.running) + len(self.planned) + planned + len(self.paused)
        return others + (request not in self.paused) <= self.max_num_seqs

    def _others(self, busy: bool) -> list[tuple[int, int]]:
        """What the batch holds and needs, save the decoding sequences where the estimate has them."""
        decoding = self.decoding
        others = [self._future(r, r.computed, r.generated, busy=busy) for r in self._not_decoding()]
        if not busy:
            others += [
                self._future(r, decoding.tokens(r), decoding.generated(r), busy=False)
                for r in decoding.members
            ]
        return others

    def _peak_of(self, others: list[tuple[int, int]], busy: bool) -> int:
        peak = self._peak if busy else PeakEstimate()
        return peak.with_others(self.decoding.iteration, others)

    def _until_planned(self, limit: int) -> int:
        """Iterations, at most *limit*, in which the head of the queue is not planned."""
        head = self.waiting[0]
        tokens = len(self.decoding) + min(head.prompt_length + head.generated, self.chunk)
        if not self._has_place(head, 0) or tokens > self.batch_max_tokens:
            return limit
        held, left = self._future(head, head.computed, head.generated, busy=True)
        return self._peak.iterations_until(self.decoding.iteration, held, left, self.pool.capacity, limit)
