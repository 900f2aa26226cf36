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
from typing import Any, ClassVar

from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.sglang_budget import RETRACT_DECODE_STEPS
from simulator.scheduling.sglang_prefill import PrefillScheduler, batch_place
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "Sglang"]


class Sglang(PrefillScheduler):
    """The policy over its token pool; keywords are SGLang's server arguments, see `PrefillScheduler`."""

    discards_in_flight: ClassVar[bool] = True
    takes_kv: ClassVar[bool] = True
    keeps_kv: ClassVar[bool] = True

    def add(self, request: Request, now: float) -> None:
        super().add(request, now)
        if request.ready:
            self.prebuilt.append(self.waiting.requests.pop())

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.prebuilt)

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
        else:
            if self.decoding.members:
                self._decode(batch)
            if self.prebuilt and not batch.preempted:
                self._take_in(batch)
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
        if not self._in_flight and not self.running and not self._leaving:
            if self.num_waiting:  # an empty pool refused the head: it never fits
                head = (self.waiting.requests or self.prebuilt).popleft()
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

    # launching prefills, decodes beside them

    def _launch_prefills(self, batch: Batch) -> None:
        pool = self.pool
        tokens = pages = sum([chunk for _, chunk, _ in batch.prefills])
        if pool.page_size > 1:
            pages = sum(
                pool.ceil(context + chunk) - pool.ceil(context) for _, chunk, context in batch.prefills
            )
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

    def _take_in(self, batch: Batch) -> None:
        """Requests whose KV came join the running batch and decode with it; their prompt runs no forward here.

        Each must leave room for the next tokens of all that run (disaggregation/decode.py: `DecodePreallocQueue`; there
        the memory is taken before the transfer, here when the KV is there).
        """
        pool, page = self.pool, self.pool.page_size
        while self.prebuilt and self._slots(0) > 0:
            request = self.prebuilt[0]
            pool.lock(request, pool.match(request, request.ready))
            need = pool.ceil(request.target) - request.registered
            reserved = self.num_reserved_decode_tokens * (len(self.running) + 1)
            if need + reserved > pool.available:
                pool.unlock(request)
                break
            pool.reserve(need + page)
            pool.take(need)
            self.prebuilt.popleft()
            batch.prefills.append((request, request.target - request.ready, request.ready))
            request.cached_tokens, request.computed, request.ready = request.ready, request.target, 0
            request.status = RUNNING
            batch.cached[request] = request.cached_tokens
            self.running[request] = None
        if batch.prefills:
            self._join(batch, first=False)

    def _join(self, batch: Batch, *, first: bool = True) -> None:
        """Requests whose last prompt token is in this batch decode from the next one on; a mixed batch has them
        *first*.
        """
        joining = [request for request, _, _ in batch.prefills if request.computed == request.target]
        places = range(self._last, self._last + len(joining))
        if batch.num_decodes and first:
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
        for request in sorted(ending, key=batch_place) if len(ending) > 1 else ending:
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
        request.status = FINISHED
        if request.sends_kv:
            self._leaving += request.computed
        else:
            self._return(request)

    def _return(self, request: Request) -> None:
        keep = min(request.computed, request.prompt_length + request.generated)
        self.pool.release(request, request.computed, keep)

    def release(self, request: Request) -> None:
        self._leaving -= request.computed
        self._return(request)

    def _unqueue(self, request: Request) -> None:
        """A waiting request leaves; a retracted one may have ended with its token in flight."""
        if request.status is not FINISHED:
            (self.prebuilt if request in self.prebuilt else self.waiting.requests).remove(request)
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
        return (self.num_waiting, used, cached, *self.waste())

    def waste(self) -> tuple[float, float, float, float]:
        pool = self.pool
        tokens = self.decoding.computed + self._finishing + self._leaving
        tokens += self.chunked.computed if self.chunked else 0
        protected = pool.cache.protected if pool.cache else 0
        private = pool.capacity - pool.available - protected
        return 0.0, private - (tokens - pool.locked), 0.0, pool.locked - protected

    @property
    def num_blocks(self) -> int:
        return self.pool.capacity // self.pool.page_size


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
        techniques=frozenset(("pipeline",)),
        defaults=_defaults,
        block_size=1,
        memory="sglang",
        traits="sglang",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
        speculation=("draft", "eagle", "mtp", "ngram"),
        speculative="sglang_speculative:SpeculativeSglang",
        speculative_fixed={"disable_overlap_schedule": True, "enable_mixed_chunk": False},
        speculative_defaults={"max_running_requests": 48},
        draft_trees=True,
    ),
)
