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

from collections.abc import Iterable
from typing import ClassVar

from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.lightllm_router import RouterScheduler
from simulator.scheduling.request import FINISHED, WAITING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "Lightllm"]

IDLE_SECONDS = 0.010


class Lightllm(RouterScheduler):
    """The policy over its token pool; keywords are LightLLM's server arguments, see `RouterScheduler`."""

    quiet: ClassVar[bool] = True

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

    # forwards

    def _run(self, batch: Batch) -> None:
        """Decode, then perhaps a chunk of every prompt; beside the first forward the batch is brought up to
        date.
        """
        if not (self._prefilling or self._merged or self._ended or self.explicit):
            if self.decoding.members:
                self.pool.take(len(self.decoding))
                self._advance(batch)
            self._may_prefill([], len(self.decoding))
            return
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
            self._advance(batch)
            forward.num_decodes, forward.decode_context = batch.num_decodes, batch.decode_context
        if self.explicit:
            batch.decodes = forward.decodes = [r for r in self.running if r in self.decoding]
        for request in single:
            self._compute(forward, request, 1)
        batch.prefills += forward.prefills
        return forward

    def _advance(self, batch: Batch) -> None:
        self.decoding.advance()
        batch.num_decodes = len(self.decoding)
        batch.decode_context = self.decoding.computed

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
        if not self._ended:
            return self.pool.used
        if not self.num_running:
            return 0
        return self.pool.used - sum(r.computed - r.registered for r in self._ended)

    @property
    def num_blocks(self) -> int:
        return self.pool.capacity

    @property
    def blocks_cached(self) -> int:
        return self.pool.available - self.pool.free

    def levels(self) -> tuple[float, float, float, float, float, float, float]:
        cached = self.pool.available - self.pool.free
        return (self.num_waiting, self.blocks_used, cached, *self.waste())

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
