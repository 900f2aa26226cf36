"""SGLang's scheduler: prefill first, chunked one request at a time, over a radix cache.

Every pass first tries to build a batch of prompts; only if none can be built do the running requests decode
(``enable_mixed_chunk`` lets them join the prompts). Admission reserves a share of the output that running
requests may still produce, the *new token ratio*; when decoding runs out of memory all the same, the requests
with the fewest outputs are retracted, lose their KV and wait at the end of the queue. A refused admission
closes the batch until a request leaves it.

By default the loop runs one pass ahead of the results (depth 2): output counts lag a token behind, a request
that ends by length is foreseen and left out, one that ends by its end-of-sequence token computes one token
for nothing, and a prompt enters the tree a pass later than it was computed. A retracted request's token in
flight is thrown away: its ``generated`` falls by one.

Read in SGLang 0.5.23 (managers/scheduler.py, schedule_policy.py, schedule_batch.py); its recorded decisions
are reproduced.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.radix import RadixNode
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.sglang_budget import (
    CLIP_MAX_NEW_TOKENS,
    RETRACT_DECODE_STEPS,
    NewTokenRatio,
    OutputReserve,
    PrefillBudget,
)
from simulator.scheduling.sglang_pool import TokenPool
from simulator.scheduling.sglang_queue import WaitingQueue
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "Sglang"]

CONTINUE, NO_TOKEN, OTHER = "continue", "no token", "other"


class Sglang(Scheduler):
    """The policy over its token pool; keywords are SGLang's server arguments.

    *max_total_tokens* of KV in pages of *page_size* tokens, at most *max_running_requests* at a time (by
    default 2048 to 4096, more where contexts are short, and at most half the tokens), prefill batches of
    *max_prefill_tokens* and chunks of *chunked_prefill_size* tokens (−1: prompts are not cut).
    *schedule_conservativeness* scales the first new token ratio; *context_length* limits a sequence (default:
    the capacity).
    """

    discards_in_flight = True

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

    # one pass

    def schedule(self, now: float) -> Batch | Wait | None:
        batch = Batch()
        if self._reopen:
            self.batch_is_full = self._reopen = False
        if self.chunked is not None:
            self.pool.checkpoint(self.chunked, self.chunked.computed)
        self._prefill(batch)
        if batch.prefills:
            self._launch_prefills(batch)
        elif self.decoding.members:
            self._decode(batch)
        if batch.prefills or batch.num_decodes:
            return self._launch(batch)
        return self._nothing(batch)

    def _launch(self, batch: Batch) -> Batch:
        batch.iteration = self.decoding.iteration
        closed = self.batch_is_full or not self.waiting
        steady = self._flight is None or not self._flight.prefills
        batch.repeatable = closed and steady and not (batch.prefills or batch.preempted or batch.rejected)
        self._flight = batch
        self._in_flight += 1
        return batch

    def _nothing(self, batch: Batch) -> Batch | None:
        """Nothing runs in this pass. A server without any work forgets what it learned of output lengths."""
        if not self._in_flight and not self.running:
            if self.waiting:  # an empty pool refused the head: it never fits
                head = self.waiting.requests.popleft()
                head.status = FINISHED
                batch.rejected.append(
                    (head, f"needs more than the {self.pool.capacity} tokens of KV there are")
                )
            else:
                self.new_token_ratio.reset()
        if not batch.preempted and not batch.rejected:
            return None
        self._in_flight += 1
        return batch

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
        return sorted(self.decoding.members, key=_place)

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
        chunk = min(chunk, self.pool.available // self.pool.page_size * self.pool.page_size)
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

    # launching prefills, decodes beside them

    def _launch_prefills(self, batch: Batch) -> None:
        pool = self.pool
        tokens = pages = sum([chunk for _, chunk, _ in batch.prefills])
        if pool.page_size > 1:
            pages = sum(pool.ceil(context + chunk) - pool.ceil(context) for _, chunk, context in batch.prefills)
            tokens += len(batch.prefills) * pool.page_size
        pool.reserve(tokens)
        pool.take(pages)
        self._reopen = self.chunked is not None or not self.decoding.members
        if self.mixed_chunk and self.decoding.members:
            self._mix(batch)
        self._join(batch)

    def _mix(self, batch: Batch) -> None:
        """The running requests decode in the same batch if there is memory for them; else they sit out."""
        if self._drop_finishing():
            self.batch_is_full = False
        if self.decoding.members and self._fits():
            self._advance(batch)
            self._reopen = True

    def _join(self, batch: Batch) -> None:
        """Requests whose last prompt token is in this batch decode from the next one on."""
        joining = [request for request, _, _ in batch.prefills if request.computed == request.target]
        places = range(self._last, self._last + len(joining))
        if batch.num_decodes:  # a mixed batch has its prompts first
            places = range(self._first - len(joining), self._first)
        self._first, self._last = min(self._first, places.start), max(self._last, places.stop)
        for request, place in zip(joining, places, strict=True):
            request.order = place
            request.generated += 1
            request.state = self.decoding.iteration + request.max_tokens - request.generated
            self.decoding.join(request)
            self._reserve.join(request, self.decoding.iteration)
            if self.depth > 1:
                heapq.heappush(self._ends, (request.state, place, request))
        batch.joining = joining

    # decoding

    def _fits(self) -> bool:
        """Make room for the next token of everybody."""
        return self.pool.reserve(self.decoding.blocks_next * self.pool.page_size)

    def _decode(self, batch: Batch) -> None:
        before = len(self.decoding)
        finishing = self._drop_finishing()
        if not self.decoding.members:
            self.batch_is_full = False
            return
        fits = self._fits()
        if not fits and finishing:  # their memory comes back at the end of this pass
            self.batch_is_full = False
            return
        if fits:
            self.new_token_ratio.step()
        else:
            self._retract(batch)
        if len(self.decoding) < before:
            self.batch_is_full = False
        if self.decoding.members:
            self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        decoding, pool = self.decoding, self.pool
        if pool.page_size > 1:
            pool.reserve(len(decoding) * pool.page_size)
        pool.take(decoding.blocks_next * pool.page_size)
        decoding.advance()
        batch.num_decodes = len(decoding)
        batch.decode_context = decoding.computed
        if self.explicit:
            batch.decodes = self._in_order()

    def _drop_finishing(self) -> bool:
        """Sequences whose last token by length is in flight sit out until it is back (depth 2)."""
        dropped, ends = False, self._ends
        while ends and ends[0][0] <= self.decoding.iteration:
            end, _, request = heapq.heappop(ends)
            if request in self.decoding and request.state == end:
                self._leave(request)
                self._finishing += request.computed
                dropped = True
        return dropped

    def _leave(self, request: Request) -> None:
        self.decoding.leave(request)
        self._reserve.leave(request)

    def _retract(self, batch: Batch) -> None:
        """Take the KV of the requests with the fewest outputs, of these the longest prompts, until the others
        fit.
        """
        outputs = {request: self._outputs(request) for request in self._in_order()}
        keep = sorted(outputs, key=lambda r: (outputs[r], -r.prompt_length), reverse=True)
        page = self.pool.page_size
        while len(keep) > 1:
            victim = keep.pop()
            self._preempt(batch, victim, outputs[victim], len(keep))
            if self.pool.reserve(self.decoding.blocks_next * page):
                break
        if len(keep) == 1 and not self.pool.reserve(self.decoding.blocks_next * page):
            self._abort(batch, keep.pop())
        self.new_token_ratio.retracted(
            sum(outputs[r] for r in keep), sum(r.max_tokens for r in keep), len(keep)
        )

    def _preempt(self, batch: Batch, victim: Request, outputs: int, kept: int) -> None:
        self._discard(victim)
        self._leave(victim)
        del self.running[victim]
        self.pool.release(victim, victim.computed, 0)
        self.pool.reserve(kept * RETRACT_DECODE_STEPS)
        victim.status = PREEMPTED
        victim.computed = 0
        victim.generated = outputs
        victim.target = victim.prompt_length + outputs
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.requests.append(victim)
        batch.preempted.append(victim)

    def _discard(self, victim: Request) -> None:
        """What *victim* computes in the batch in flight will not be looked at."""
        flight = self._flight
        if flight is not None:
            flight.joining = [request for request in flight.joining if request is not victim]
            if flight.decodes is not None:
                flight.decodes = [request for request in flight.decodes if request is not victim]

    def _abort(self, batch: Batch, request: Request) -> None:
        self._leave(request)
        del self.running[request]
        self.pool.release(request, request.computed, 0)
        request.status = FINISHED
        batch.rejected.append((request, "out of memory even after all other requests were retracted"))

    # results

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        self._in_flight -= 1
        if self._flight is batch:
            self._flight = None
        ending = dict.fromkeys(ended)
        for request in batch.joining:
            if request in ending:
                del ending[request]
                self._finish(request, batch)
            elif request.status is RUNNING:
                self.pool.checkpoint(request, request.target)
        for request in sorted(ending, key=_place) if len(ending) > 1 else ending:
            self._finish(request, batch)

    def _finish(self, request: Request, batch: Batch) -> None:
        """The tree keeps everything but the last token, which has no KV unless one more was computed for
        nothing.
        """
        if request.status is not RUNNING:
            self._unqueue(request)
            return
        if request in self.decoding:
            self._leave(request)
            self._reopen = True
            request.generated = request.generated - (self.decoding.iteration - batch.iteration)
        else:
            self._finishing -= request.computed
        del self.running[request]
        keep = min(request.computed, request.prompt_length + request.generated)
        self.pool.release(request, request.computed, keep)
        request.status = FINISHED

    def _unqueue(self, request: Request) -> None:
        """A waiting request leaves; a retracted one may have ended with its token in flight."""
        if request.status is not FINISHED:
            self.waiting.requests.remove(request)
            request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request.status is not RUNNING:
            self._unqueue(request)
            return
        keep = 0
        if request in self.decoding:
            self._leave(request)
            self._reopen = True
            keep = min(request.computed, request.prompt_length + request.generated - self.depth + 1)
        elif request is self.chunked:
            self.chunked = None
            self._reopen = True
        else:
            self._finishing -= request.computed
        del self.running[request]
        self.pool.release(request, request.computed, keep)
        request.status = FINISHED

    # many passes at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        limit -= 1
        if self._ends:
            limit = min(limit, max(self._ends[0][0] - self.decoding.iteration, 0))
        return 1 + self.decoding.iterations_within(self.pool.available // self.pool.page_size, limit)

    def advance(self, batch: Batch, n: int) -> None:
        decoding, page = self.decoding, self.pool.page_size
        need = decoding.blocks_over(n) * page
        room = need
        if page > 1:  # the last of the passes asks for a page for everybody
            room = decoding.blocks_over(n - 1) * page + len(decoding) * page
        self.pool.reserve(room)
        self.pool.take(need)
        self.new_token_ratio.step(n)
        decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return (self.pool.capacity - self.pool.available) // self.pool.page_size

    @property
    def blocks_cached(self) -> int:
        return (self.pool.available - self.pool.free) // self.pool.page_size

    def levels(self) -> tuple[float, float, float, float, float, float, float]:
        pool, page = self.pool, self.pool.page_size
        available = pool.available
        used, cached = (pool.capacity - available) // page, (available - pool.free) // page
        return (len(self.waiting.requests), used, cached, *self.waste())

    def waste(self) -> tuple[float, float, float, float]:
        pool = self.pool
        tokens = self.decoding.computed + self._finishing + (self.chunked.computed if self.chunked else 0)
        protected = pool.cache.protected if pool.cache else 0
        private = pool.capacity - pool.available - protected
        return 0.0, private - (tokens - pool.locked), 0.0, pool.locked - protected

    @property
    def num_blocks(self) -> int:
        return self.pool.capacity // self.pool.page_size


def _place(request: Request) -> int:
    return request.order


def _default_requests(max_total_tokens: int, context_length: int) -> int:
    """SGLang's own limit of running requests (model_executor: 512 per context that fits, clamped)."""
    clamped = min(max(max_total_tokens * 512 // context_length, 2048), 4096)
    return max(min(clamped, max_total_tokens // 2), 1)


def _defaults(device: Device) -> dict[str, Any]:
    """The chunk grows with the memory of a device (server_args.py)."""
    steps = ((35, 2048), (60, 4096), (160, 8192))
    chunk = next((tokens for gib, tokens in steps if device.memory_gib < gib), 16384)
    return {"chunked_prefill_size": chunk}


SYSTEMS = (
    System(
        name="sglang",
        version="0.5.23",
        summary="prompts first, one cut at a time, radix cache, estimated outputs, retraction, a pass ahead",
        source="SGLang 0.5.23, srt/managers/scheduler.py",
        status="recorded",
        policy="sglang:Sglang",
        defaults=_defaults,
        block_size=1,
        memory="sglang",
        traits="sglang",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
    ),
)
