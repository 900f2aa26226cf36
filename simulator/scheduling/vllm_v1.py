"""vLLM's V1 scheduler: one token budget, running requests first, prefill in chunks.

There is no prefill phase and no decode phase. A request has tokens and computed tokens, and every step
hands out a budget of ``max_num_batched_tokens`` to make up the difference: first to the running requests in
the order of their admission, then to waiting ones while the budget, ``max_num_seqs`` and free blocks last.
Where a running request finds no block, the last of the running ones (or the least urgent, with
``policy="priority"``) loses all its blocks and starts over from the front of the queue; in that step nobody
is admitted.

Read in vLLM 0.33.0 (v1/core/sched/scheduler.py, kv_cache_manager.py, block_pool.py) and 0.11.2; recorded
decisions of 0.33.0 are reproduced step by step. `V1Rules` holds what changed in between.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sized
from typing import ClassVar, NamedTuple

from simulator.compiled.attributes import mypyc_attr
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.block_sizes import FLASH_ATTENTION
from simulator.scheduling.blocks import BlockManager, Hit
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "V1Rules", "VllmV1"]


class V1Rules(NamedTuple):
    """What differs between releases of V1.

    *reserve_full_prompt*: admission asks for free blocks for everything known of the request, though it
    takes only the chunk's (0.33, ``scheduler_reserve_full_isl``); *unhashed_first*: freed blocks without
    content go to the front of the free queue (0.33); *threshold_spares_lone*:
    ``long_prefill_token_threshold`` leaves a request that is alone whole (0.33); *self_preemption_stops*: a
    request that preempts itself under ``priority`` ends the scan of the running list (0.11);
    *skip_unchunked*: without chunked prefill a prompt above the budget is passed over, not waited for
    (0.11).
    """

    reserve_full_prompt: bool = True
    unhashed_first: bool = True
    threshold_spares_lone: bool = True
    self_preemption_stops: bool = False
    skip_unchunked: bool = False


V1_RULES = {
    "0.33": V1Rules(),
    "0.11": V1Rules(
        reserve_full_prompt=False,
        unhashed_first=False,
        threshold_spares_lone=False,
        self_preemption_stops=True,
        skip_unchunked=True,
    ),
}


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmV1(Scheduler):
    """The V1 policy over its block manager.

    *max_num_batched_tokens* tokens a step for at most *max_num_seqs* running requests, *num_gpu_blocks*
    usable blocks of *block_size* tokens, sequences up to *max_model_len* tokens. *watermark* is the
    fraction of blocks kept free when a request is admitted beside others. With *async_scheduling* a step is
    decided while the last one runs.
    """

    quiet: ClassVar[bool] = True
    takes_kv: ClassVar[bool] = True
    keeps_kv: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        max_model_len: int = 8192,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        policy: str = "fcfs",
        long_prefill_token_threshold: int = 0,
        watermark: float = 0.0,
        async_scheduling: bool = False,
        rules: V1Rules | None = None,
        explicit: bool = False,
        track_ids: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_num_seqs, block_size=block_size, explicit=explicit or track_ids)
        if policy not in ("fcfs", "priority"):
            raise ConfigurationError(f"policy {policy!r}: must be fcfs or priority")
        if max_num_batched_tokens < 1:
            raise ConfigurationError(f"max_num_batched_tokens {max_num_batched_tokens}: must be at least 1")
        rules = rules or V1_RULES["0.33"]
        self.block_size = block_size
        self.by_priority = policy == "priority"
        self.chunked = enable_chunked_prefill
        self.threshold = long_prefill_token_threshold
        self.rules = rules
        self.depth = 2 if async_scheduling else 1
        self.blocks = BlockManager(
            num_gpu_blocks,
            block_size,
            prefix_caching=enable_prefix_caching,
            unhashed_first=rules.unhashed_first,
            track_ids=track_ids,
        )
        self.max_model_len = min(max_model_len, num_gpu_blocks * block_size)
        # A prompt that may not be cut must fit one step: vLLM's default budget is then the longest sequence.
        self.max_num_batched_tokens = max(
            max_num_batched_tokens, 0 if enable_chunked_prefill else self.max_model_len
        )
        self.watermark_blocks = int(watermark * num_gpu_blocks)
        self.waiting: deque[Request] = deque()
        self._queue: list[
            tuple[int, float, str, Request]
        ] = []  # waiting requests by urgency, under `priority`
        self._line: Sized = self._queue if self.by_priority else self.waiting
        self._prefilling: dict[Request, None] = {}
        self._last_decoder = -1  # highest admission order that ever joined the decoding set
        self._num_admitted = 0
        self._leaving = 0  # tokens of ended requests whose KV is on its way to a decode replica
        self._limits: list[tuple[int, int, Request]] = []  # where `max_tokens` ends a sequence, for depth 2
        # the head of the queue that found no room, and the least number of blocks that it needs
        self._blocked: Request | None = None
        self._blocked_need = 0

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.max_model_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"the prompt leaves no room for output within max_model_len {self.max_model_len}"
            )
        if request.max_tokens > room:
            request.max_tokens = room
        self._enqueue(request)

    def _enqueue(self, request: Request, *, front: bool = False) -> None:
        if self.by_priority:
            heapq.heappush(self._queue, (request.priority, request.arrival_time, request.id, request))
        elif front:
            self.waiting.appendleft(request)
        else:
            self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    # one step

    def schedule(self, now: float) -> Batch | None:
        if not self.running and not self._line:
            return None
        decoding = self.decoding
        if self._limits and self._limits[0][0] <= decoding.iteration:
            self._drain_limits()
        if not self._prefilling and (not self._line or self._still_blocked()) and not self.explicit:
            decoding_only = self._decode_only()
            if decoding_only is not None:
                return decoding_only
        batch = Batch()
        budget = None if self.explicit else self._run_counted(batch)
        if budget is None:
            budget = self._run_in_order(batch)
        if self._line and budget > 0 and not batch.preempted and len(self.running) < self.max_num_seqs:
            self._admit(batch, budget)
        if batch.prefills:
            self._join(batch)
        elif not batch.num_decodes:
            return self._nothing(batch)
        else:
            batch.repeatable = not (batch.preempted or batch.stalled or self._prefilling)
        batch.iteration = decoding.iteration
        return batch

    def _nothing(self, batch: Batch) -> Batch | None:
        """No tokens in this step; preemptions still have to be told."""
        return batch if batch.preempted else None

    def _threshold(self) -> int:
        alone = len(self.running) + self.num_waiting <= 1
        return 0 if alone and self.rules.threshold_spares_lone else self.threshold

    def _chunk(self, wanted: int, budget: int, threshold: int) -> int:
        if 0 < threshold < wanted:
            wanted = threshold
        return wanted if wanted < budget else budget

    # running: the short cut

    def _decode_only(self) -> Batch | None:
        """One token for everybody, where nobody prefills or can be admitted. None: there is no room for it."""
        decoding, blocks = self.decoding, self.blocks
        decodes, iteration = decoding.count, decoding.iteration
        need = decoding.phases[iteration % self.block_size]
        if not decodes or need > blocks.num_free or decodes > self.max_num_batched_tokens:
            return None
        if need:
            blocks.take(need)
        decoding.iteration = iteration = iteration + 1
        decoding.computed = computed = decoding.computed + decodes
        batch = Batch()
        batch.num_decodes, batch.decode_context, batch.iteration = decodes, computed, iteration
        batch.repeatable = True
        return batch

    def _run_counted(self, batch: Batch) -> int | None:
        """Give every running request its tokens by counting; the budget left. None: somebody's turn matters."""
        decoding, blocks = self.decoding, self.blocks
        decodes = decoding.count
        need = decoding.phases[decoding.iteration % self.block_size]
        budget = self.max_num_batched_tokens - decodes
        chunks = self._chunks_counted(budget) if self._prefilling else ()
        if budget < 0 or chunks is None:
            return None
        for request, chunk in chunks:
            need += -(-(request.computed + chunk) // self.block_size) - request.num_blocks
        if need > blocks.num_free:
            return None
        if decodes:
            blocks.take(decoding.phases[decoding.iteration % self.block_size])
            decoding.iteration += 1
            decoding.computed += decodes
            batch.num_decodes = decodes
            batch.decode_context = decoding.computed
        for request, chunk in chunks:
            self._compute(batch, request, chunk)
            budget -= chunk
        return budget

    def _chunks_counted(self, budget: int) -> list[tuple[Request, int]] | None:
        """The next chunk of every request with prompt left. None: a decoding one comes after one of them."""
        if next(iter(self._prefilling)).order < self._last_decoder:
            return None
        threshold, chunks = self._threshold() if self.threshold else 0, []
        for request in self._prefilling:
            if budget <= 0:
                break
            chunk = self._chunk(request.target - request.computed, budget, threshold)
            if chunk > 0:
                chunks.append((request, chunk))
                budget -= chunk
        return chunks

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        """Give *request* the blocks and the turn for its next *chunk* prompt tokens."""
        context = request.computed
        request.computed = computed = context + chunk
        self.blocks.grow(request, computed)
        if request.content:  # what has no name nobody can match before the request is done
            self.blocks.register(request, computed)
        batch.prefills.append((request, chunk, context))

    # running: one by one

    def _run_in_order(self, batch: Batch) -> int:
        budget = self.max_num_batched_tokens
        threshold = self._threshold()
        decodes: dict[Request, None] = {}
        chunks: dict[Request, int] = {}
        for request in list(self.running):
            if budget <= 0:
                break
            if request.status is not RUNNING:  # preempted earlier in this step
                continue
            tokens = self._tokens(request)
            chunk = self._turn(request, tokens, budget, threshold)
            if chunk == 0:
                continue
            while not self._has_room(request, tokens + chunk):
                victim = self._victim()
                budget += self._preempt(batch, victim, decodes, chunks)
                if victim is request:
                    break
            if request.status is not RUNNING:
                if self.by_priority and not self.rules.self_preemption_stops:
                    continue
                break
            self._grant(request, tokens, chunk)
            if request in self.decoding:
                decodes[request] = None
            else:
                chunks[request] = chunk
            budget -= chunk
        self._take_turns(batch, decodes, chunks)
        return budget

    def _tokens(self, request: Request) -> int:
        return self.decoding.tokens(request) if request in self.decoding else request.computed

    def _turn(self, request: Request, tokens: int, budget: int, threshold: int) -> int:
        """Tokens that *request*, which has computed *tokens*, is given in this step."""
        wanted = 1 if request in self.decoding else max(request.target - tokens, 0)
        return self._chunk(wanted, budget, threshold)

    def _grant(self, request: Request, tokens: int, chunk: int) -> None:
        request.num_blocks = -(-tokens // self.block_size)
        self.blocks.grow(request, tokens + chunk)

    def _has_room(self, request: Request, tokens: int) -> bool:
        held = -(-self._tokens(request) // self.block_size)
        return -(-tokens // self.block_size) - held <= self.blocks.num_free

    def _victim(self) -> Request:
        if self.by_priority:
            return max(self.running, key=lambda r: (r.priority, r.arrival_time))
        return next(reversed(self.running))

    def _preempt(
        self, batch: Batch, victim: Request, decodes: dict[Request, None], chunks: dict[Request, int]
    ) -> int:
        """*victim* loses its blocks and waits again; returns the budget that its turn in this step gives back."""
        given = 0
        if victim in decodes:
            del decodes[victim]
            given = 1
        elif victim in chunks:
            given = chunks.pop(victim)
        self._retire(victim, given, for_good=False)
        victim.status = PREEMPTED
        victim.computed = 0
        victim.target = victim.prompt_length + victim.generated
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._enqueue(victim, front=True)
        batch.preempted.append(victim)
        return given

    def _take_turns(self, batch: Batch, decodes: dict[Request, None], chunks: dict[Request, int]) -> None:
        decoding = self.decoding
        left_out = [] if len(decodes) == len(decoding) else [r for r in decoding.members if r not in decodes]
        if decodes:
            decoding.advance()
            for request in left_out:
                decoding.stall(request)
        batch.stalled = left_out if decodes else []
        batch.num_decodes = len(decodes)
        batch.decode_context = decoding.computed - sum(decoding.tokens(r) for r in left_out) if decodes else 0
        if self.explicit:
            batch.decodes = list(decodes)
        for request, chunk in chunks.items():
            self._compute(batch, request, chunk)

    # waiting

    def _admit(self, batch: Batch, budget: int) -> None:
        threshold = self._threshold() if self.threshold else 0
        passed: list[Request] = []
        while budget > 0 and self._line and len(self.running) < self.max_num_seqs:
            if self._blocked is not None and self._still_blocked():
                break
            request = self._queue[0][3] if self.by_priority else self.waiting[0]
            hit = self.blocks.match(request, request.target - 1)
            context = hit.blocks * self.block_size
            if request.ready > context:
                context = request.ready
            wanted = request.target - context
            if 0 < threshold < wanted:
                wanted = threshold
            if wanted > budget and not self.chunked:
                if not self.rules.skip_unchunked:
                    break
                passed.append(self._pop())
                continue
            chunk = min(wanted, budget)
            tokens = request.target if self.rules.reserve_full_prompt else context + chunk
            need = -(-tokens // self.block_size) - hit.blocks + hit.free
            if self.running:
                need += self.watermark_blocks
            if need > self.blocks.num_free:
                self._block(request, hit)
                break
            self._pop()
            self._start(batch, request, hit, context, chunk)
            budget -= chunk
        for request in reversed(passed):
            self._enqueue(request, front=True)

    def _block(self, request: Request, hit: Hit) -> None:
        """*request* found no room. What it found may be lost and found again; more than that is news (`watch`)."""
        if self.rules.reserve_full_prompt:
            self._blocked = request
            self._blocked_need = -(-request.target // self.block_size) - hit.blocks
            self.blocks.watch(hit)

    def _still_blocked(self) -> bool:
        """Whether the head of the queue cannot be admitted even if all it may find is held by others."""
        if self._blocked is None or self._blocked_need <= self.blocks.num_free or self.blocks.stirred:
            return False
        return self._blocked is (self._queue[0][3] if self.by_priority else self.waiting[0])

    def _pop(self) -> Request:
        self._blocked = None
        return heapq.heappop(self._queue)[3] if self.by_priority else self.waiting.popleft()

    def _start(self, batch: Batch, request: Request, hit: Hit, context: int, chunk: int) -> None:
        if hit.blocks:
            self.blocks.touch(request, hit)
        request.computed = request.cached_tokens = context
        if request.ready:
            request.ready = 0  # a preemption loses it
        batch.cached[request] = context
        request.status = RUNNING
        request.order = self._num_admitted
        self._num_admitted += 1
        self.running[request] = None
        self._prefilling[request] = None
        self._compute(batch, request, chunk)

    # what a step leaves behind

    def _join(self, batch: Batch) -> None:
        """Requests whose last prompt token is in this batch decode from the next one on."""
        for request, _, _ in batch.prefills:
            if request.computed == request.target:
                del self._prefilling[request]
                request.generated += 1
                self.decoding.join(request)
                if request.order > self._last_decoder:
                    self._last_decoder = request.order
                if self.depth > 1:
                    request.state = at = self.decoding.iteration + request.max_tokens - request.generated
                    heapq.heappush(self._limits, (at, request.order, request))
                batch.joining.append(request)

    def _push_limit(self, request: Request) -> None:
        at = self.decoding.iteration + request.max_tokens - self.decoding.generated(request)
        request.state = at
        heapq.heappush(self._limits, (at, request.order, request))

    def _drain_limits(self) -> None:
        """Sequences whose ``max_tokens`` are all scheduled sit out until their last token is back (depth 2)."""
        decoding, limits = self.decoding, self._limits
        while limits and limits[0][0] <= decoding.iteration:
            at, _, request = heapq.heappop(limits)
            if request.phase < 0 or request.state != at:
                continue
            if decoding.generated(request) < request.max_tokens:  # it missed a turn
                self._push_limit(request)
            else:
                decoding.leave(request)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            if request.status is RUNNING:
                self._retire(request)
            else:
                self._unqueue(request)
            request.status = FINISHED

    def _retire(self, request: Request, turn: int = 0, *, for_good: bool = True) -> None:
        """*request* leaves the running set; *turn* tokens were already granted to it in this step."""
        del self.running[request]
        if request.phase >= 0:
            self.decoding.leave(request)
        else:
            self._prefilling.pop(request, None)
        computed = request.computed + turn
        request.num_blocks = -(-computed // self.block_size)
        if self.depth > 1 and request.generated:
            # the last token of a batch in flight is not known yet: its block has no content
            computed = max(computed - 1, request.registered * self.block_size)
        if request.sends_kv:
            request.computed = computed
            self._leaving += computed
            return
        self.blocks.retire(request, computed, for_good=for_good)

    def release(self, request: Request) -> None:
        self._leaving -= request.computed
        self.blocks.retire(request, request.computed, for_good=True)

    def _unqueue(self, request: Request) -> None:
        if self.by_priority:
            self._queue[:] = [entry for entry in self._queue if entry[3] is not request]
            heapq.heapify(self._queue)
        else:
            self.waiting.remove(request)

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._retire(request)
        else:
            self._unqueue(request)
        request.status = FINISHED

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit:
            return 1
        limit -= 1
        if self._limits:
            limit = min(limit, max(self._limits[0][0] - self.decoding.iteration, 0))
        return 1 + self.decoding.iterations_within(self.blocks.num_free, limit)

    def advance(self, batch: Batch, n: int) -> None:
        decoding = self.decoding
        need = decoding.blocks_over(n)
        if need:
            self.blocks.take(need)
        decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.blocks.num_blocks - self.blocks.num_free

    @property
    def num_blocks(self) -> int:
        return self.blocks.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.blocks.num_cached_free

    def waste(self) -> tuple[float, float, float, float]:
        return self.levels()[3:]

    def levels(self) -> tuple[float, float, float, float, float, float, float]:
        blocks, tokens, size = self.blocks, self.decoding.computed + self._leaving, self.block_size
        for request in self._prefilling:
            tokens += request.computed
        used = blocks.num_blocks - blocks.num_free
        shared = blocks.num_shared * size
        internal = used * size + shared - tokens
        return len(self._line), used, blocks.num_cached_free, 0.0, internal, 0.0, shared


def _defaults(device: Device, huge: tuple[int, int]) -> dict[str, int]:
    """vLLM's API server: more for large devices, A100 excepted (engine/arg_utils.py)."""
    if device.memory_gib >= 160:
        tokens, seqs = huge
    elif device.memory_gib >= 70 and "a100" not in device.name:
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    return {"max_num_batched_tokens": tokens, "max_num_seqs": seqs}


def _defaults_0_33(device: Device) -> dict[str, int]:
    return {**_defaults(device, (16384, 1024)), "async_scheduling": True}


def _defaults_0_11(device: Device) -> dict[str, int]:
    return _defaults(device, (8192, 1024))


SYSTEMS = (
    System(
        name="vllm",
        block_sizes=FLASH_ATTENTION,
        version="0.33.0",
        summary="one token budget, running requests first, chunked prefill, prefix cache, recompute, one step ahead",
        source="vLLM 0.33.0, v1/core/sched/scheduler.py",
        status="recorded",
        policy="vllm_v1:VllmV1",
        fixed={"rules": V1_RULES["0.33"]},
        defaults=_defaults_0_33,
        speculation=("draft", "eagle", "mtp", "medusa", "ngram"),
        speculative="vllm_v1_speculative:SpeculativeVllmV1",
        speculation_ahead=("draft", "eagle", "mtp"),
        draft_host_us={"draft": 1000.0},
        draft_host_source="inferred: vLLM 0.10.1, a forward of the draft takes 37.5 % of Qwen3-8B's and 12.5 % of "
        "Llama-3-70B's (arXiv 2601.11580)",
        extended="vllm_v1_extended:ExtendedV1",
        techniques=frozenset(("lora", "kv_offloading", "context_parallel", "pipeline")),
    ),
    System(
        name="vllm-0.11",
        block_sizes=FLASH_ATTENTION,
        version="0.11.2",
        summary="V1 before prompts were reserved in full at admission; schedules after each step",
        source="vLLM 0.11.2, v1/core/sched/scheduler.py",
        status="read",
        policy="vllm_v1:VllmV1",
        fixed={"rules": V1_RULES["0.11"]},
        defaults=_defaults_0_11,
        extended="vllm_v1_extended:ExtendedV1",
        techniques=frozenset(("lora", "kv_offloading", "context_parallel", "pipeline")),
        memory="vllm-0.11",
        traits="vllm-0.11",
        speculation=("eagle", "mtp", "medusa", "ngram"),
        speculative="vllm_v1_speculative:SpeculativeVllmV1",
    ),
)
