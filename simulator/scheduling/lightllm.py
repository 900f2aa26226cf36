"""LightLLM's scheduler: a router that admits by the peak of future tokens, and a backend that paces prefills.

The router plans one iteration ahead: a request planned in iteration *t* joins the batch in *t + 1*, where the
backend only looks it up in the prompt cache, and computes its first chunk in *t + 2* at the earliest.
Planning is first come first served and stops at the first request whose `peak` would not fit. The backend
decodes first; in the same iteration, as a second forward, all prompts get one chunk each, but beside decodes
only when a new batch has just come or for 6 iterations no prompt ran. A finished sequence stays one iteration
longer, then its KV goes to the prompt cache.

With ``router_token_ratio`` 0 the router always expects ``max_new_tokens`` and never runs out of memory. Above
0 it expects less while memory is plentiful, and pauses the last requests of the batch when the next iteration
does not fit; they return to the front of the queue and find what the cache still has of them.

Read in LightLLM fc72ffab (server/router/manager.py, req_queue/chunked_prefill/impl.py, model_infer/); its
recorded decisions are reproduced. An idle router looks for work every 10 ms; planning otherwise runs beside
the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.lightllm_cache import PromptPool
from simulator.scheduling.lightllm_peak import PeakEstimate
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, WAITING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "Lightllm"]

ADDED_OUTPUT_LEN = 6
IDLE_SECONDS = 0.010


class Lightllm(Scheduler):
    """The policy over its token pool; keywords are LightLLM's server arguments.

    *max_total_token_num* tokens of KV; at most *running_max_req_size* requests run or are paused; a planned
    batch computes at most *batch_max_tokens* in one iteration (default twice the chunk and 256, at most
    *max_req_total_len*); prompts are cut into *chunked_prefill_size* tokens. With
    *disable_aggressive_schedule* planned requests join only every *router_max_wait_tokens* iterations.
    """

    quiet = True

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

    # iterations

    def schedule(self, now: float) -> Batch | Wait | None:
        batch = Batch()
        while True:
            empty = not self.running and not self.planned
            self.iterate(batch)
            if batch.num_decodes or batch.prefills or batch.preempted or batch.rejected:
                return batch
            if self.running:
                continue
            if self.planned:
                return Wait(now + IDLE_SECONDS)
            if not self.waiting:
                return None
            if empty:
                self._reject_head(batch)

    def _reject_head(self, batch: Batch) -> None:
        """An empty server refused the head of the queue: it never fits."""
        head = self.waiting.popleft()
        self.paused.pop(head, None)
        if head in self._ended:
            del self._ended[head]
            self._num_ended_waiting -= 1
            return
        head.status = FINISHED
        batch.rejected.append((head, f"needs more than the {self.pool.capacity} tokens of KV there are"))

    def iterate(self, batch: Batch) -> None:
        """One iteration of the router's loop, which may run nothing: what it decides goes into *batch*."""
        self._merge(batch)
        if self.token_ratio > 0:
            self._pause(batch)
        self._plan(batch)
        self._run(batch)
        self._since_merge += 1
        batch.iteration = self.decoding.iteration
        steady = len(self.decoding) == len(self.running) and not self.planned
        batch.repeatable = steady and not batch.prefills and not batch.preempted and not batch.rejected

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

    # forwards

    def _run(self, batch: Batch) -> None:
        """Decode, then perhaps a chunk of every prompt; beside the first forward the batch is brought up to
        date.
        """
        single = [r for r in self._prefilling if r.target - r.computed == 1]
        prompts = [r for r in self._prefilling if r.target - r.computed > 1]
        ended = [r for r in self._ended if r in self.running and r not in self._merged]
        forwards = []
        decodes = len(self.decoding) + len(single)
        if decodes:
            forwards.append(self._decode(batch, single))
            self._update(batch, ended)
        if self._may_prefill(prompts, decodes) and self._has_room(prompts):
            forwards.append(self._prefill(batch, prompts))
            if not decodes:
                self._update(batch, ended)
        if not forwards:
            self._update(batch, ended)
        if len(forwards) > 1:
            batch.forwards = forwards
        self._join(batch)

    def _decode(self, batch: Batch, single: list[Request]) -> Batch:
        """One token of every sequence that lacks one, be it the last of its prompt."""
        forward = Batch()
        self.pool.take(len(self.decoding) + len(single))
        if self.decoding.members:
            self.decoding.advance()
            batch.num_decodes = forward.num_decodes = len(self.decoding)
            batch.decode_context = forward.decode_context = self.decoding.computed
        if self.explicit:
            batch.decodes = [r for r in self.running if r in self.decoding]
        for request in single:
            self._compute(forward, request, 1)
        batch.prefills += forward.prefills
        return forward

    def _may_prefill(self, prompts: list[Request], decodes: int) -> bool:
        if decodes and self._waited < self.max_wait and not self._credits:
            self._waited += bool(prompts)
            return False
        self._credits = max(self._credits - 1, 0)
        self._waited = 0
        return bool(prompts)

    def _has_room(self, prompts: list[Request]) -> bool:
        """Cache hits of this iteration may have locked what the router took for available."""
        return sum(min(r.target - r.computed, self.chunk) for r in prompts) <= self.pool.available

    def _prefill(self, batch: Batch, prompts: list[Request]) -> Batch:
        forward = Batch()
        self.pool.take(sum(min(r.target - r.computed, self.chunk) for r in prompts))
        for request in prompts:
            self._compute(forward, request, min(request.target - request.computed, self.chunk))
        batch.prefills += forward.prefills
        return forward

    def _compute(self, forward: Batch, request: Request, chunk: int) -> None:
        forward.prefills.append((request, chunk, request.computed))
        request.computed += chunk

    def _update(self, batch: Batch, ended: list[Request]) -> None:
        """Release what has ended, look up what has joined."""
        for request in ended:
            self.pool.release(request, request.computed)
            del self.running[request]
            del self._ended[request]
        for request in self._merged:
            request.target = request.prompt_length + request.generated
            request.computed = batch.cached[request] = self.pool.start(request)
            if request not in self._ended:
                request.cached_tokens = request.computed
                self._prefilling[request] = None
        self._note(batch, "released", ended)
        self._merged = []

    def _join(self, batch: Batch) -> None:
        """Requests whose last missing token is in this batch decode from the next one on."""
        iteration = self.decoding.iteration
        for request, _, _ in batch.prefills:
            if request.computed == request.target:
                del self._prefilling[request]
                request.generated += 1
                self.decoding.join(request)
                held, left = self._future(request, request.computed, request.generated, busy=True)
                request.state = held - iteration, left + iteration
                self._peak.join(*request.state)
                batch.joining.append(request)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._leave(request)
            request.status = FINISHED
            self._ended[request] = None

    def cancel(self, request: Request, now: float) -> None:
        if request.status is WAITING or request in self.planned or request in self.paused:
            (self.planned if request in self.planned else self.waiting).remove(request)
            self.paused.pop(request, None)
        else:
            del self.running[request]
            self._leave(request)
            self.pool.release(request, request.computed)
        request.status = FINISHED

    # many iterations at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        limit = 1 + self.decoding.iterations_within(self.pool.available, limit - 1)
        if self.token_ratio > 0:
            if self.waiting:
                return 1
            room = (self.pool.capacity - self.pool.used) // batch.num_decodes
            limit = min(limit, 1 + room)
        return 1 + self._until_planned(limit - 1) if self.waiting else limit

    def _until_planned(self, limit: int) -> int:
        """Iterations, at most *limit*, in which the head of the queue is not planned."""
        head = self.waiting[0]
        tokens = len(self.decoding) + min(head.prompt_length + head.generated, self.chunk)
        if not self._has_place(head, 0) or tokens > self.batch_max_tokens:
            return limit
        held, left = self._future(head, head.computed, head.generated, busy=True)
        return self._peak.iterations_until(self.decoding.iteration, held, left, self.pool.capacity, limit)

    def advance(self, batch: Batch, n: int) -> None:
        self.pool.take(n * batch.num_decodes)
        if self._credits or self._waited >= self.max_wait:
            self._waited = 0
        self._credits = max(self._credits - n, 0)
        self._since_merge += n
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        if not self.num_running:
            return 0
        return self.pool.used - sum(r.computed - r.registered for r in self._ended)

    @property
    def num_blocks(self) -> int:
        return self.pool.capacity

    @property
    def blocks_cached(self) -> int:
        return self.pool.available - self.pool.free

    def waste(self) -> tuple[float, float, float, float]:
        cache = self.pool.cache
        shared = cache.locked - cache.protected if cache else 0
        return 0.0, 0.0, 0.0, shared


SYSTEMS = (
    System(
        name="lightllm",
        version="1.0.1 (fc72ffab)",
        summary="admits by the peak of future tokens, a chunk of every prompt at once, prompt cache",
        source="LightLLM fc72ffab, server/router/manager.py",
        status="recorded",
        policy="lightllm:Lightllm",
        block_size=1,
        memory="lightllm",
        traits="lightllm",
        capacity="max_total_token_num",
        capacity_in_tokens=True,
    ),
)
