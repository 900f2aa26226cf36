"""The half of SGLang's scheduler that builds prefill batches: who is admitted, and how much of a prompt.

A batch takes the rest of the one chunked request first, then waiting requests in the queue's order up to the
first that does not fit into what `PrefillBudget` leaves. Requests of known length (``ignore_eos``) with the
radix cache off are tested by playing everybody's end through (managers/schedule_policy.py: `PrefillAdder`,
SGLang 0.5.23).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.radix import RadixNode
from simulator.scheduling.request import RUNNING, Request
from simulator.scheduling.sglang_budget import (
    CLIP_MAX_NEW_TOKENS,
    NewTokenRatio,
    OutputReserve,
    PrefillBudget,
)
from simulator.scheduling.sglang_pool import TokenPool
from simulator.scheduling.sglang_queue import WaitingQueue

__all__ = ["PrefillScheduler", "batch_place"]

CONTINUE, NO_TOKEN, OTHER = "continue", "no token", "other"


class PrefillScheduler(Scheduler):
    """The policy over its token pool; keywords are SGLang's server arguments.

    *max_total_tokens* of KV in pages of *page_size* tokens, at most *max_running_requests* at a time (by
    default 2048 to 4096, more where contexts are short, and at most half the tokens), prefill batches of
    *max_prefill_tokens* and chunks of *chunked_prefill_size* tokens (−1: prompts are not cut).
    *schedule_conservativeness* scales the first new token ratio; *context_length* limits a sequence (default:
    the capacity).
    """

    def __init__(
        self,
        *,
        max_total_tokens: int,
        max_running_requests: int | None = None,
        page_size: int = 1,
        max_prefill_tokens: int = 16384,
        chunked_prefill_size: int = 8192,
        context_length: int | None = None,
        schedule_policy: str = "fcfs",
        schedule_conservativeness: float = 1.0,
        disable_radix_cache: bool = False,
        disable_overlap_schedule: bool = False,
        enable_mixed_chunk: bool = False,
        num_reserved_decode_tokens: int = 512,
        explicit: bool = False,
    ) -> None:
        context_length = context_length or max_total_tokens
        if max_running_requests is None:
            max_running_requests = _default_requests(max_total_tokens, context_length)
        super().__init__(max_num_seqs=max_running_requests, block_size=page_size, explicit=explicit)
        if 0 < chunked_prefill_size < page_size:
            raise ConfigurationError(
                f"chunked_prefill_size {chunked_prefill_size}: below page_size {page_size}"
            )
        if max_prefill_tokens < 1:
            raise ConfigurationError(f"max_prefill_tokens {max_prefill_tokens}: must be at least 1")
        self.pool = TokenPool(max_total_tokens, page_size, radix_cache=not disable_radix_cache)
        self.depth = 1 if disable_overlap_schedule else 2
        self.max_prefill_tokens = max_prefill_tokens
        self.chunked_prefill_size = chunked_prefill_size if chunked_prefill_size > 0 else None
        self.max_req_len = min(context_length, self.pool.capacity) - 1
        self.mixed_chunk = enable_mixed_chunk and chunked_prefill_size > 0
        self.new_token_ratio = NewTokenRatio(schedule_conservativeness)
        self.waiting = WaitingQueue(schedule_policy, self.pool.cache)
        self.chunked: Request | None = None
        """The one request in the middle of its prompt."""
        self.batch_is_full = False
        """Nobody is admitted until a request leaves the running batch."""
        self.num_reserved_decode_tokens = num_reserved_decode_tokens
        self.prebuilt: deque[Request] = deque()
        """Requests that brought their KV from a prefill server and wait for room."""
        self._leaving = 0  # tokens of ended requests whose KV is on its way to a decode server
        self._reserve = OutputReserve()
        self._ends: list[tuple[int, int, Request]] = []  # where `max_tokens` ends a sequence, for depth 2
        self._first, self._last = 0, 0  # places in the running batch
        self._finishing = 0  # tokens of sequences that ended by length and wait for their last result
        self._reopen = False
        self._flight: Batch | None = None
        self._in_flight = 0
        self._states: list[tuple[float, int]] | None = None

    # arrivals

    def add(self, request: Request, now: float) -> None:
        prompt = request.prompt_length
        room = self.pool.capacity - self.pool.ceil(prompt) - self.pool.page_size - 1
        room = min(self.max_req_len - prompt - 1, room)
        if room < 1:
            raise CapacityError(
                f"a prompt of {prompt} tokens leaves no room for output in {self.max_req_len + 1} tokens"
            )
        request.max_tokens = min(request.max_tokens, room)
        self.pool.enter(request)
        self.waiting.requests.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # prefill

    def _slots(self, held: int) -> int:
        """Requests that may still join, of which *held* have their row already."""
        return self.max_num_seqs - max(len(self.decoding), len(self.running) - held)

    def _prefill(self, batch: Batch) -> None:
        if not self.decoding.members:
            self.batch_is_full = False
        if (self.batch_is_full or not self.waiting) and self.chunked is None:
            return
        if self._slots(0) <= 0 and self.chunked is None:
            self.batch_is_full = True
            return
        self.waiting.sort()
        budget = self._budget()
        held = 0
        if self.chunked is not None:
            held = self._resume(batch, budget, self.chunked)
        self._admit(batch, budget, held)

    def _budget(self) -> PrefillBudget:
        self._states = None
        return PrefillBudget(
            self.pool,
            self._expected(),
            mixed=len(self.decoding) if self.mixed_chunk else 0,
            max_prefill_tokens=self.max_prefill_tokens,
            chunk=self.chunked_prefill_size,
        )

    def _expected(self) -> float:
        """Tokens that the running requests are expected to generate still."""
        flight, ratio = self._flight, self.new_token_ratio.current
        expected = None
        if not self.explicit:
            unknown: Iterable[Request] | None = ()
            if flight is not None and self.depth > 1:
                unknown = None if flight.num_decodes else [r for r in flight.joining if r in self.decoding]
            expected = self._reserve.estimate(self.decoding.iteration, ratio, unknown)
        if expected is None:
            return OutputReserve.exact(((r, self._outputs(r)) for r in self._in_order()), ratio)
        return expected

    def _in_order(self) -> list[Request]:
        """The running batch as the real one lists it."""
        return sorted(self.decoding.members, key=batch_place)

    def _outputs(self, request: Request) -> int:
        """The output tokens whose values have come back."""
        flight = self._flight
        lag = self.depth > 1 and flight is not None and (flight.num_decodes > 0 or request in flight.joining)
        return self.decoding.generated(request) - lag

    def _resume(self, batch: Batch, budget: PrefillBudget, request: Request) -> int:
        """The next chunk of the chunked request goes first, whatever others may need."""
        left = request.target - request.computed
        chunk = budget.chunk if budget.chunk is not None else left
        total = int(budget.total)
        if 0 < total < chunk:
            chunk = total
        chunk = min(chunk, self.pool.available + self.pool.ceil(request.computed) - request.computed)
        if chunk <= 0:
            return 0
        ends = left <= chunk
        self._compute(batch, request, min(left, chunk))
        budget.charge(min(left, chunk), min(request.max_tokens, CLIP_MAX_NEW_TOKENS) if ends else 0)
        if ends:
            self.chunked = None
        return 1

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk

    def _admit(self, batch: Batch, budget: PrefillBudget, held: int) -> None:
        """Take waiting requests in order, up to the first that does not fit."""
        waiting = self.waiting.requests
        if budget.exhausted and not budget.full:
            return
        while waiting:
            if len(batch.prefills) >= self._slots(held + len(batch.cached)):
                self.batch_is_full = True
            if self.batch_is_full:
                return
            request = waiting[0]
            if request.ignore_eos and self.pool.cache is None:
                verdict = self._admit_exactly(batch, budget, request)
            else:
                verdict = self._admit_one(batch, budget, request)
            if request in batch.cached:
                waiting.popleft()
            if verdict is NO_TOKEN:
                self.batch_is_full = bool(batch.prefills or self.decoding.members)
            if verdict is not CONTINUE:
                return

    def _admit_one(self, batch: Batch, budget: PrefillBudget, request: Request) -> str:
        pool, page = self.pool, self.pool.page_size
        node = pool.match(request, request.target - 1)
        pool.lock(request, node)
        extend = request.target - request.registered
        outputs = min(max(request.max_tokens - request.generated, 0), CLIP_MAX_NEW_TOKENS)
        verdict, chunk = CONTINUE, extend
        if extend + outputs + page >= budget.total:
            verdict = NO_TOKEN
        elif budget.chunk is None:
            if batch.prefills and pool.ceil(extend) >= budget.input:
                verdict = OTHER
        elif pool.ceil(extend) > budget.chunk:
            chunk = budget.chunk // page * page
            if chunk <= 0 or self.chunked is not None:  # one request at a time is in the middle
                verdict = OTHER
        if verdict is not CONTINUE:
            pool.unlock(request)
            return verdict
        self._start(batch, request, node, chunk)
        budget.charge(chunk, min(request.max_tokens, CLIP_MAX_NEW_TOKENS) if chunk == extend else 0)
        return self._state(budget)

    def _admit_exactly(self, batch: Batch, budget: PrefillBudget, request: Request) -> str:
        """Requests of known length, nothing shared: play the ends of the running ones through."""
        extend = request.target
        paged = self.pool.ceil(extend) + self.pool.page_size
        if paged > min(budget.current, budget.total) or not self._peak_fits(
            batch, budget.current - paged, request
        ):
            return NO_TOKEN
        chunk = extend if budget.chunk is None else min(extend, budget.chunk)
        if chunk <= 0 or (chunk < extend and self.chunked is not None):
            return OTHER
        self._start(batch, request, None, chunk)
        budget.charge(chunk, min(request.max_tokens, CLIP_MAX_NEW_TOKENS) if chunk == extend else 0)
        return self._state(budget)

    def _peak_fits(self, batch: Batch, free: int, request: Request) -> bool:
        states = self._states
        if states is None:
            rows = [(request, request.generated)]
            rows += [(r, self._outputs(r)) for r in self._in_order()]
            rows += [(r, r.generated) for r, _, _ in batch.prefills]
            states = [state for r, outputs in rows if (state := self._ending(r, outputs))[0] > 0]
            states.sort(key=lambda state: state[0])
            self._states = states
        elif (new := self._ending(request, request.generated))[0] > 0:
            later = (i for i, state in enumerate(states) if new[0] <= state[0])
            states.insert(next(later, max(len(states) - 1, 0)), new)
        count, freed = len(states), 0
        for i, (left, occupied) in enumerate(states):
            if free + freed - left * (count - i) <= count - i:
                return False
            freed += occupied
        return True

    def _ending(self, request: Request, outputs: int) -> tuple[float, int]:
        """Tokens until *request* ends, and what it occupies by now."""
        ratio = 1.0 if request.ignore_eos else self.new_token_ratio.current
        return request.max_tokens * ratio - outputs, request.prompt_length + outputs

    def _start(self, batch: Batch, request: Request, node: RadixNode | None, chunk: int) -> None:
        request.own_node = node
        request.computed = request.cached_tokens = request.registered
        request.status = RUNNING
        batch.cached[request] = request.computed
        self.running[request] = None
        self._compute(batch, request, chunk)
        if request.computed < request.target:
            self.chunked = request

    def _state(self, budget: PrefillBudget) -> str:
        if budget.full:
            return NO_TOKEN
        return OTHER if budget.exhausted else CONTINUE


def batch_place(request: Request) -> int:
    """Where *request* stands in the running batch."""
    return request.order


def _default_requests(max_total_tokens: int, context_length: int) -> int:
    """SGLang's own limit of running requests (model_executor: 512 per context that fits, clamped)."""
    clamped = min(max(max_total_tokens * 512 // context_length, 2048), 4096)
    return max(min(clamped, max_total_tokens // 2), 1)
