"""transformers' continuous batching: everybody is a candidate, who does not fit is passed over.

Each step walks over candidates: active decoding requests, active prefilling ones, waiting ones (with
``prefill_first`` the prefilling before the decoding). A candidate takes the tokens it needs or what is left
of ``max_batch_tokens``, if its KV fits the read budget and its new blocks are free; one that fails is skipped
and the walk goes on, so younger requests overtake. Below a safety margin of free blocks nothing new starts
beside running work.

Active requests that found no block are *starved*. Room is made for them: cached blocks are thrown away, then
the newest starved ones lose their KV (to the host if there is room, else they start over), and nobody is
admitted until a request finishes. With ``use_async_batching`` a step is decided while the last one runs, so
every request computes one token too many and a request that loses its KV also loses the token in flight.

Read in transformers 5.23.0 (generation/continuous_batching: scheduler.py, cache.py, offloading_manager.py);
its recorded decisions are reproduced. There a request that outgrows the whole cache stops the server; here it
ends at that length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.hf_attempt import Attempt, Notes
from simulator.scheduling.hf_blocks import SharedBlocks
from simulator.scheduling.hf_queue import WaitingRequests
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, SWAPPED, Request
from simulator.scheduling.swap import SwapSpace
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "HfContinuous"]

SAFETY_MARGIN = {"fifo": 0.15, "prefill_first": 0.0}


class HfContinuous(Scheduler):
    """The policy over its paged cache; keywords are those of ``ContinuousBatchingConfig``.

    *num_blocks* of *page_size* tokens; a step has at most *max_batch_tokens* tokens and
    *max_requests_per_batch* requests. *max_blocks_per_request* is the length of the block table of the decode
    fast path (0: none), *safety_margin* the share of blocks below which nothing new starts (None: 0.15, or 0
    for ``prefill_first``), *num_cpu_blocks* the host space.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        page_size: int = 256,
        max_batch_tokens: int = 8192,
        max_requests_per_batch: int = 1024,
        max_blocks_per_request: int = 32,
        scheduler_type: str = "fifo",
        safety_margin: float | None = None,
        allow_block_sharing: bool = True,
        use_async_batching: bool = False,
        num_cpu_blocks: int = 0,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_requests_per_batch, block_size=page_size, explicit=explicit)
        if scheduler_type not in SAFETY_MARGIN:
            raise ConfigurationError(f"scheduler_type {scheduler_type!r}: must be fifo or prefill_first")
        if max_batch_tokens < 1:
            raise ConfigurationError(f"max_batch_tokens {max_batch_tokens}: must be at least 1")
        margin = SAFETY_MARGIN[scheduler_type] if safety_margin is None else safety_margin
        if not 0 <= margin <= 1:
            raise ConfigurationError(f"safety_margin {margin}: must be between 0 and 1")
        self.blocks = SharedBlocks(num_blocks, page_size)
        self.host = SwapSpace(num_cpu_blocks)
        self.capacity = num_blocks * page_size
        self.max_batch_tokens = max_batch_tokens
        self.max_requests = min(max_requests_per_batch, max_batch_tokens)
        self.fast_length = max_blocks_per_request * page_size
        self.prefill_first = scheduler_type == "prefill_first"
        self.safety_margin = margin
        self.sharing = allow_block_sharing
        self.depth = 2 if use_async_batching else 1
        self.waiting = WaitingRequests(self.blocks)
        self.closed = False
        """Nobody is admitted until a request finishes."""
        self._prefilling: dict[Request, None] = {}
        self._num_prefilled = 0  # tokens that those have computed
        self._longest_base = 0
        self._late: dict[Request, None] = {}  # decoding requests with parts of their prompt not hashed yet
        self._flight: deque[Batch] = deque()
        self._found: dict[Request, int] = {}  # tokens that this step's look-ups found in the cache

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.capacity - request.prompt_length + 2 - self.depth  # the last token's KV is never written
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens leaves no room for output"
                f" in the {self.capacity} tokens of KV"
            )
        request.max_tokens = min(request.max_tokens, room)
        request.state = Notes(request.prompt_length)
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # one step

    def schedule(self, now: float) -> Batch | Wait | None:
        if not self.running and not self.num_waiting:
            return None
        batch = Batch()
        self._found = {}
        tries, evicted = 0, self.blocks.num_evicted
        attempt = self._attempt(batch)
        while not attempt.rows and attempt.failed:
            if not self._make_room(batch, attempt.starved):
                raise CapacityError(
                    f"nothing fits in the {self.capacity} tokens of KV and nobody can make room"
                )
            tries += 1
            attempt = self._attempt(batch)
        starved = attempt.starved[:]
        if starved:
            self._make_room(batch, attempt.starved)
        self.host.give(batch.blocks_swapped_in)  # they are copied back once room has been made
        if not attempt.rows and not batch.preempted:
            return None
        self._launch(batch, attempt)
        if self.explicit:
            evicted = self.blocks.num_evicted - evicted
            batch.notes = {"starved": [r for r, _ in starved], "tries": tries, "evicted": evicted}
            batch.notes |= {"found": self._found, "fast": attempt.fast}
        return batch

    def _attempt(self, batch: Batch) -> Attempt:
        """Walk over the candidates once."""
        fast = self.fast_length > 0
        attempt = Attempt(self.max_batch_tokens, self.capacity, self.max_requests, fast)
        attempt.in_margin = self._in_margin()
        groups = [self._consider_decodes, self._consider_prefills]
        if self.prefill_first:
            groups.reverse()
        if not self.closed:
            groups.append(self._consider_waiting)
        for consider in groups:
            if not consider(batch, attempt):
                break
        return attempt

    def _in_margin(self) -> bool:
        """Whether enough blocks are free, if need be without the cached ones."""
        blocks = self.blocks
        inside = blocks.free / blocks.num_blocks >= self.safety_margin
        if not inside and blocks.evict():
            inside = blocks.free / blocks.num_blocks >= self.safety_margin
        return inside

    # candidates; each of these says whether the walk goes on

    def _consider_decodes(self, batch: Batch, attempt: Attempt) -> bool:
        decoding = self.decoding
        count, need = len(decoding), decoding.blocks_next
        if not count:
            return True
        fits = need <= self.blocks.free and count <= min(attempt.tokens, attempt.requests)
        fast = attempt.fast and self._longest() < self.fast_length
        if self.explicit or not fits or (decoding.computed >= attempt.reads and not fast):
            rows = [request for request in self.running if request in decoding]
            return all(self._consider(batch, attempt, request) for request in rows)
        self.blocks.take(need)
        attempt.decodes, attempt.fast = None, fast
        attempt.rows += count
        attempt.tokens -= count
        attempt.requests -= count
        attempt.reads -= decoding.computed
        return attempt.tokens > 0 and attempt.requests > 0

    def _longest(self) -> int:
        """At least the tokens of the longest decoding sequence; exactly those where the bound is too high."""
        iteration, tokens = self.decoding.iteration, self.decoding.tokens
        if self._longest_base + iteration >= self.fast_length:
            self._longest_base = max(map(tokens, self.decoding.members), default=0) - iteration
        return self._longest_base + iteration

    def _consider_prefills(self, batch: Batch, attempt: Attempt) -> bool:
        return all(self._consider(batch, attempt, request) for request in list(self._prefilling))

    def _consider_waiting(self, batch: Batch, attempt: Attempt) -> bool:
        if not attempt.in_margin and attempt.rows:
            return False
        if not self.waiting:
            return True
        if self.waiting.unmatched and not self.explicit:
            return self._consider_fitting(batch, attempt)
        admitted: list[Request] = []
        goes_on = True
        for request in self.waiting.in_order():
            goes_on = self._consider(batch, attempt, request)
            if request.status is RUNNING:
                admitted.append(request)
            if not goes_on:
                break
        for request in admitted:
            self.waiting.remove(request)
        if goes_on:
            self.waiting.asked()
        return goes_on

    def _consider_fitting(self, batch: Batch, attempt: Attempt) -> bool:
        """The same where nobody finds cached blocks, asking only those that fit."""
        place = 0
        if attempt.reads < 0 and attempt.tokens > 1 and not self.waiting.num_single:
            return True  # the read budget refuses all but single tokens
        while (request := self.waiting.first_fitting(attempt.tokens, place)) is not None:
            place = self.waiting.place(request)
            goes_on = self._consider(batch, attempt, request)
            if request.status is RUNNING:
                self.waiting.remove(request)
            if not goes_on:
                return False
        attempt.failed = attempt.failed or (bool(self.waiting) and attempt.reads >= 0)
        return True

    def _consider(self, batch: Batch, attempt: Attempt, request: Request) -> bool:
        """Schedule *request* if it fits. False: the walk ends here."""
        decodes = request in self.decoding
        if attempt.rows and not (attempt.in_margin or decodes):
            return False
        if self.sharing and request.status is not RUNNING and request.status is not SWAPPED:
            self._look_up(batch, request)
        tokens = self.decoding.tokens(request) if decodes else request.computed
        chunk = 1 if decodes else min(request.target - tokens, attempt.tokens)
        eligible = chunk == 1 and tokens < self.fast_length
        if tokens > attempt.reads and not (eligible and attempt.fast):
            return True
        need = self._blocks_needed(request, tokens, chunk)
        if need > self.blocks.free:
            attempt.failed = True
            if request.status is RUNNING:
                attempt.starved.append((request, chunk))
            return True
        self.blocks.take(need)
        if decodes:
            self._decode(attempt, request)
        else:
            request.num_blocks += need
            self._compute(batch, attempt, request, chunk)
        attempt.fast = eligible and attempt.fast
        attempt.rows += 1
        attempt.tokens -= chunk
        attempt.reads -= tokens
        attempt.requests -= 1
        spent = attempt.tokens <= 0 or attempt.requests <= 0 or (attempt.reads <= 0 and not attempt.fast)
        return not spent

    def _blocks_needed(self, request: Request, tokens: int, chunk: int) -> int:
        held = self.blocks.blocks_for(tokens) if request in self.decoding else request.num_blocks
        return max(self.blocks.blocks_for(tokens + chunk) - held, 0)

    def _look_up(self, batch: Batch, request: Request) -> None:
        """A request that finds blocks in the cache is active from now on, whether or not it is scheduled."""
        found = self.blocks.match(request, request.target - 1)
        if found:
            self.blocks.acquire(request, found)
            self._activate(batch, request, len(found) * self.blocks.page_size)
            self._found[request] = request.computed

    def _activate(self, batch: Batch, request: Request, cached: int) -> None:
        if request.status is SWAPPED:
            self._restore(batch, request)
        else:
            request.computed = cached
        request.status = RUNNING
        request.cached_tokens = cached
        request.state.started = False
        self.running[request] = self._prefilling[request] = None
        self._num_prefilled += request.computed

    def _restore(self, batch: Batch, request: Request) -> None:
        batch.blocks_swapped_in += request.state.host_blocks
        request.state.host_blocks = 0

    def _decode(self, attempt: Attempt, request: Request) -> None:
        assert attempt.decodes is not None
        attempt.decodes.append(request)

    def _compute(self, batch: Batch, attempt: Attempt, request: Request, chunk: int) -> None:
        if request.status is not RUNNING:
            self._activate(batch, request, 0)
        if not request.state.started:
            request.state.started = True
            batch.cached[request] = request.cached_tokens
        attempt.chunks.append((request, chunk, request.computed))

    # making room

    def _make_room(self, batch: Batch, starved: list[tuple[Request, int]]) -> bool:
        """Evict, then drop the newest of *starved* until the others would fit. False: nothing helped."""
        evicted = self.blocks.evict()
        needs = [self._blocks_needed(r, self._tokens(r), chunk) for r, chunk in starved]
        victims: list[Request] = []
        active = len(self.running)
        while starved and active - len(victims) > 1 and sum(needs) > self.blocks.free:
            request, _ = starved.pop()
            needs.pop()
            victims.append(request)
            self._drop(request)
        for request in victims:
            self._offload(batch, request)
        for request in reversed(victims):
            self.waiting.append(request)
            batch.preempted.append(request)
        if victims:
            self.closed = True
        return bool(victims or evicted)

    def _tokens(self, request: Request) -> int:
        return self.decoding.tokens(request) if request in self.decoding else request.computed

    def _drop(self, request: Request) -> None:
        """*request* loses its blocks and, if a batch in flight computes one, its last token."""
        del self.running[request]
        decodes = request in self.decoding
        lost = decodes and any(self._takes_part(request, batch) for batch in self._flight)
        self._leave(request)
        self.num_preemptions += 1
        request.num_preemptions += 1
        request.generated -= lost
        request.computed -= lost
        if decodes:
            request.target = request.computed + 1
        request.state.host_blocks = request.num_blocks
        request.state.unhashed = 0
        self.blocks.release(request, keep=False)

    def _leave(self, request: Request) -> None:
        if request in self._prefilling:
            del self._prefilling[request]
            self._num_prefilled -= request.computed
        self._late.pop(request, None)
        if request in self.decoding:
            self.decoding.leave(request)
            request.num_blocks = self.blocks.blocks_for(request.computed)

    def _offload(self, batch: Batch, request: Request) -> None:
        """To the host if there is room; else *request* starts over with its output as part of the prompt."""
        held = request.state.host_blocks
        if 0 < held <= self.host.num_free:
            self.host.take(held, touched=held)
            batch.blocks_swapped_out += held
            request.status = SWAPPED
            return
        request.state.host_blocks = 0
        request.status = PREEMPTED
        request.computed = 0
        request.target = request.state.prompt = request.prompt_length + request.generated

    # what a step leaves behind

    def _launch(self, batch: Batch, attempt: Attempt) -> None:
        self._take_turns(batch, attempt)
        batch.prefills = attempt.chunks
        for request, chunk, _ in attempt.chunks:
            request.computed += chunk
            self._num_prefilled += chunk
            if request.computed == request.target:
                del self._prefilling[request]
                self._num_prefilled -= request.computed
                request.generated += 1
                self.decoding.join(request)
                self._longest_base = max(self._longest_base, request.base)
                batch.joining.append(request)
        batch.iteration = self.decoding.iteration
        batch.repeatable = self._is_steady(batch, attempt)
        self._flight.append(batch)

    def _take_turns(self, batch: Batch, attempt: Attempt) -> None:
        decoding, decodes = self.decoding, attempt.decodes
        if decodes is None:
            decoding.advance()
            batch.num_decodes, batch.decode_context = len(decoding), decoding.computed
            return
        if self.explicit or len(decodes) < len(decoding):
            batch.decodes = decodes
        if not decodes:
            return
        decoding.advance()
        taken = set(decodes)
        batch.stalled = [request for request in decoding.members if request not in taken]
        for request in batch.stalled:
            decoding.stall(request)
        batch.num_decodes = len(decodes)
        batch.decode_context = sum(map(decoding.tokens, decodes))

    def _is_steady(self, batch: Batch, attempt: Attempt) -> bool:
        """Whether nothing but decoding happens, and nothing else would if it went on."""
        if attempt.decodes is not None or batch.prefills or batch.preempted or not batch.num_decodes:
            return False
        if attempt.tokens <= 0 or attempt.requests <= 0:
            return True
        if not attempt.in_margin:
            return not self.blocks.cached and not self.prefill_first
        idle = self.closed or not self.waiting or self.waiting.unmatched  # and nobody fitted
        return idle and not self._prefilling

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        self._flight.remove(batch)
        ended = list(ended)
        if batch.prefills and self.sharing:
            self._hash_prefills(batch, set(ended))
        for request in ended:
            if request.status is RUNNING and request not in batch.joining:
                self._hash_output(request, 1)
            self._finish(request)
        for request in list(self._late):
            self._hash_output(request, 0)
        if ended:
            self.closed = False

    def _hash_prefills(self, batch: Batch, ended: set[Request]) -> None:
        """Blocks of prompts become matchable; not those of a request that ends here, nor, as the release has
        it, those of a chunk that was followed by the last one before its results were processed.
        """
        for request, chunk, context in batch.prefills:
            if request in ended or request.status is not RUNNING:
                continue
            full = (context + chunk) // self.blocks.page_size
            if context + chunk == request.target or request in self._prefilling:
                self.blocks.register(request, full - request.state.unhashed)
                if request.state.unhashed and request in self.decoding:
                    self._late[request] = None
            else:
                request.state.unhashed = full - request.registered

    def _hash_output(self, request: Request, unprocessed: int) -> None:
        """Hash what decoding filled, without the tokens of batches in flight and of *unprocessed* steps."""
        if not self.sharing or request not in self.decoding:
            return
        unprocessed += sum(self._takes_part(request, batch) for batch in self._flight)
        settled = self.decoding.tokens(request) - unprocessed
        request.num_blocks = self.blocks.blocks_for(self.decoding.tokens(request))
        self.blocks.register(request, settled // self.blocks.page_size - request.state.unhashed)

    def _takes_part(self, request: Request, batch: Batch) -> bool:
        """Whether *batch* computes a token of *request*, which decodes by now."""
        if request in batch.joining:
            return True
        prefills = any(other is request for other, _, _ in batch.prefills)
        return batch.num_decodes > 0 and request not in batch.stalled and not prefills

    def _finish(self, request: Request) -> None:
        if request.status is RUNNING:
            del self.running[request]
            self._leave(request)
            self.blocks.release(request, keep=True)
        elif request.status is SWAPPED:
            self.host.give(request.state.host_blocks)
            self.waiting.remove(request)
        else:
            self.waiting.remove(request)
        request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING and not any(request in batch.joining for batch in self._flight):
            self._hash_output(request, 0)
        self._finish(request)
        if not self.running:  # the release would wait for ever for somebody to finish
            self.closed = False

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        decoding, blocks = self.decoding, self.blocks
        spare = blocks.free
        if self.safety_margin > 0 and spare / blocks.num_blocks >= self.safety_margin:
            spare -= int(self.safety_margin * blocks.num_blocks) + 1  # short of where the cache is evicted
        elif blocks.cached:
            return 1
        if spare < 0:
            return 1
        readable = (self.capacity - 1 - decoding.computed) // len(decoding)
        readable = max(readable, self.fast_length - 1 - self._longest(), 0)
        page, flights = blocks.page_size, len(self._flight)
        for request in self._late:  # a block that it fills lets one of its prompt be matched
            limit = min(limit, page - (decoding.tokens(request) - flights) % page)
        return 1 + decoding.iterations_within(spare, min(limit - 1, readable))

    def advance(self, batch: Batch, n: int) -> None:
        decoding = self.decoding
        self.blocks.take(decoding.blocks_over(n))
        decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.blocks.used

    @property
    def num_blocks(self) -> int:
        return self.blocks.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.blocks.cached

    def waste(self) -> tuple[float, float, float, float]:
        page = self.blocks.page_size
        tokens = self.decoding.computed + self._num_prefilled
        shared = self.blocks.num_shared * page
        return 0.0, self.blocks.used * page + shared - tokens, 0.0, shared


def _defaults(device: Device) -> dict[str, object]:
    """Asynchronous where CUDA graphs are used, which is with flash attention (initialization.py)."""
    return {"use_async_batching": True}


SYSTEMS = (
    System(
        name="hf-continuous",
        version="5.23.0",
        summary="transformers' continuous batching: who does not fit is passed over; margin, soft resets",
        source="transformers 5.23.0, generation/continuous_batching",
        status="recorded",
        policy="hf_continuous:HfContinuous",
        defaults=_defaults,
        block_size=256,
        memory="hf",
        traits="hf",
        capacity="num_blocks",
        swap="gathered",  # offloading_manager.py: index_select, then one copy
    ),
)
