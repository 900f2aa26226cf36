"""TensorRT-LLM's scheduler: who may run is decided first, then who runs now and how much of each prompt.

The capacity pass walks over the active requests, at most ``max_batch_size`` in the order of their arrival.
``GUARANTEED_NO_EVICT`` takes every generating request and then prompts in order, up to the first whose
blocks until its last possible token exceed what the others leave. ``STATIC_BATCH`` starts prompts only when
nobody generates. ``MAX_UTILIZATION`` counts the blocks of this iteration only; where they do not suffice
the last started request is paused: it loses its blocks and will compute its prompt and output again. With
block reuse a prompt waits while an equal one is being computed.

The micro-batch pass hands out ``max_num_tokens`` in the same order; without chunked prefill it ends at the
first prompt that does not fit. Prompts get all their blocks with the first chunk.

Read in TensorRT-LLM (tensorrt_llm/_torch/pyexecutor/scheduler at 5f480b7a, batch_manager); its recorded
decisions are reproduced. They were made without the overlap scheduler, beams and draft tokens, and so is
this.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.block_sizes import TENSORRT_LLM
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.system import Device, System
from simulator.scheduling.trtllm_blocks import ReuseBlock, ReusePool
from simulator.scheduling.trtllm_capacity import Fitting, Line, place
from simulator.scheduling.trtllm_chunks import check_policy, cut_prompts

__all__ = ["SYSTEMS", "TensorRtLlm"]

NO_EVICT, MAX_UTILIZATION, STATIC = "GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"


class TensorRtLlm(Scheduler):
    """The policies over one pool of blocks; keywords are TensorRT-LLM's.

    *max_batch_size* requests and *max_num_tokens* tokens an iteration, sequences of *max_seq_len* tokens at
    most, *num_blocks* of *tokens_per_block* tokens. *chunk_unit_size* is in tokens (None: a block);
    *two_step_lookahead* makes maximum utilization ask for two tokens' blocks.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        tokens_per_block: int = 32,
        max_batch_size: int = 2048,
        max_num_tokens: int = 8192,
        max_seq_len: int | None = None,
        capacity_scheduler_policy: str = NO_EVICT,
        enable_chunked_prefill: bool = False,
        context_chunking_policy: str = "FIRST_COME_FIRST_SERVED",
        chunk_unit_size: int | None = None,
        enable_block_reuse: bool = True,
        two_step_lookahead: bool = False,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_batch_size, block_size=max(tokens_per_block, 1), explicit=explicit)
        if capacity_scheduler_policy not in (NO_EVICT, MAX_UTILIZATION, STATIC):
            raise ConfigurationError(
                f"capacity_scheduler_policy {capacity_scheduler_policy!r}: must be one of"
                f" {NO_EVICT}, {MAX_UTILIZATION}, {STATIC}"
            )
        if max_num_tokens < 1:
            raise ConfigurationError(f"max_num_tokens {max_num_tokens}: must be at least 1")
        check_policy(context_chunking_policy)
        self.blocks = ReusePool(num_blocks, tokens_per_block, reuse=enable_block_reuse)
        self.policy = capacity_scheduler_policy
        self.max_num_tokens = max_num_tokens
        capacity = num_blocks * tokens_per_block
        self.max_seq_len = capacity if max_seq_len is None else min(max_seq_len, capacity)
        self.chunked = enable_chunked_prefill
        self.chunking_policy = context_chunking_policy
        self.unit = tokens_per_block if chunk_unit_size is None else chunk_unit_size
        if self.unit < 1 or (self.chunked and self.unit > max_num_tokens):
            raise ConfigurationError(
                f"chunk_unit_size {self.unit}: must be 1 to max_num_tokens {max_num_tokens}"
            )
        self.lookahead = 2 if two_step_lookahead else 1
        self.width = 1
        """Tokens that a generating request computes."""
        self.queue: deque[Request] = deque()
        """Requests that are not active yet."""
        self._contexts: list[Request] = []  # active requests whose prompt is not computed, in order
        self._partial: dict[Request, None] = {}  # those of them that have started
        self._num_added = 0
        self._owed = 0  # blocks that decoding requests hold or may still need until their last token
        self._held = 0  # of which they hold
        self._last_started = -1

    # arrivals

    def add(self, request: Request, now: float) -> None:
        longest = self.max_seq_len
        if not self.chunked:
            if request.prompt_length > self.max_num_tokens:
                raise CapacityError(
                    f"a prompt of {request.prompt_length} tokens exceeds max_num_tokens {self.max_num_tokens}"
                    " and chunked prefill is off"
                )
            if self.policy == MAX_UTILIZATION:  # a paused sequence is a prompt again
                longest = min(longest, self.max_num_tokens)
        room = longest - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens leaves no room for output in {longest} tokens"
            )
        request.max_tokens = min(request.max_tokens, room)
        request.order = self._num_added
        self._num_added += 1
        self.queue.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.queue) + self.num_active - len(self.running)

    @property
    def num_active(self) -> int:
        """Requests that the capacity pass looks at."""
        return len(self.decoding) + len(self._contexts)

    # one iteration

    def schedule(self, now: float) -> Batch | Wait | None:
        while self.queue and self.num_active < self.max_num_seqs:
            self._contexts.append(self.queue.popleft())
        if not self.num_active:
            return None
        batch = Batch()
        fitting = self._fitting()
        decodes, contexts = self._hand_out(fitting)
        for request in fitting.paused:
            self._pause(batch, request)
        for request, tokens in contexts:
            self._compute(batch, request, tokens)
        self._decode(batch, decodes)
        self._join(batch)
        batch.iteration = self.decoding.iteration
        batch.repeatable = decodes is None and not (batch.prefills or fitting.paused or fitting.skipped)
        if self.explicit:
            batch.notes = self._notes(fitting, contexts)
        return batch if batch.prefills or batch.num_decodes or batch.preempted else None

    def _notes(self, fitting: Fitting, contexts: list[tuple[Request, int]]) -> dict[str, object]:
        count = len(fitting.contexts) + len(self.decoding if fitting.decodes is None else fitting.decodes)
        return {"fitting": count, "budgeted": dict(contexts)}

    # capacity: who may run

    def _fitting(self) -> Fitting:
        if self.policy == MAX_UTILIZATION:
            return self._use_fully()
        fitting = Fitting()
        if self.explicit:
            fitting.decodes = sorted(self.decoding.members, key=place)
        if self.policy == NO_EVICT:
            self._guarantee(fitting, skip=self.blocks.reuse)
        elif not self.decoding.members:
            self._guarantee(fitting, skip=False)
        return fitting

    def _guarantee(self, fitting: Fitting, *, skip: bool) -> None:
        """Prompts in order while their blocks to the end fit beside those of the generating requests."""
        free = self.blocks.free - (self._owed - self._held)
        seen = self._being_computed() if skip else set()
        for request in self._contexts:
            if skip and request.status is not RUNNING and self._waits_for(request, seen):
                fitting.skipped = True
                continue
            need = self._to_completion(request) - request.num_blocks
            if need > free:
                break
            free -= need
            fitting.contexts.append(request)

    def _to_completion(self, request: Request) -> int:
        return self.blocks.blocks_for(request.prompt_length + request.max_tokens)

    # prompts that wait for an equal one

    def _being_computed(self) -> set[Hashable]:
        """The first missing block of each prompt that is computed in part."""
        return {key for request in self._partial if (key := self.blocks.missing(request)) is not None}

    def _waits_for(self, request: Request, seen: set[Hashable]) -> bool:
        """Whether the first block that *request* lacks is being computed; else others wait for this one."""
        key = self.blocks.missing(request)
        if key is None:
            return False
        if key in seen:
            return True
        seen.add(key)
        return False

    # capacity: maximum utilization

    def _use_fully(self) -> Fitting:
        fitting = Fitting()
        if self.explicit or self.lookahead > 1 or not self._admit_behind(fitting):
            fitting = self._walk()
        return fitting

    def _admit_behind(self, fitting: Fitting) -> bool:
        """Everybody who has started fits and prompts follow in order; False: it is not as simple as that."""
        need, free = self.decoding.blocks_next, self.blocks.free
        if need > free or len(self.decoding) * self.width > self.max_num_tokens:
            return False
        seen = self._being_computed() if self.blocks.reuse else set()
        for request in self._contexts:
            started = request.status is RUNNING
            if not started:
                if self.blocks.reuse and self._waits_for(request, seen):
                    fitting.skipped = True
                    continue
                need += self.blocks.blocks_for(request.target)
                fits = need <= free
                if request.order < self._last_started and not (fits and self.chunked):
                    return False
                if not fits:
                    break
            fitting.contexts.append(request)
        return True

    def _walk(self) -> Fitting:
        """The pass as it is: where a request does not fit, the last started one behind it is paused."""
        fitting = Fitting()
        line = Line([*self.decoding.members, *self._partial], self._contexts)
        seen = self._being_computed() if self.blocks.reuse else set()
        released: dict[ReuseBlock, int] = {}
        free = self.blocks.free
        ordered: list[Request] = []
        while (request := line.current()) is not None:
            starts = request.status is not RUNNING
            if starts and self.blocks.reuse and self._waits_for(request, seen):
                fitting.skipped = True
                line.move()
                continue
            need = self._need(request)
            if need <= free:
                free -= need
                ordered.append(request)
                line.move()
                continue
            victim = line.cut()
            if victim is None:
                break
            fitting.paused.append(victim)
            free += self._released_by(victim, released)
        fitting.ordered = ordered
        fitting.decodes = [request for request in ordered if request in self.decoding]
        fitting.contexts = [request for request in ordered if request not in self.decoding]
        return fitting

    def _need(self, request: Request) -> int:
        """Blocks of *request* for this iteration."""
        if request not in self.decoding:
            return 0 if request.status is RUNNING else self.blocks.blocks_for(request.target)
        tokens = self.decoding.tokens(request)
        more = min(self.lookahead, request.prompt_length + request.max_tokens - tokens)
        return self.blocks.blocks_for(tokens + more) - self.blocks.blocks_for(tokens)

    def _released_by(self, request: Request, released: dict[ReuseBlock, int]) -> int:
        if request in self.decoding:
            request.num_blocks = self.blocks.blocks_for(self.decoding.tokens(request))
        return self.blocks.would_free(request, released)

    # micro batch: who runs now

    def _hand_out(self, fitting: Fitting) -> tuple[list[Request] | None, list[tuple[Request, int]]]:
        """Generating requests (None: all) and prompts with their tokens."""
        if fitting.decodes is None and len(self.decoding) * self.width <= self.max_num_tokens:
            contexts = self._pick(fitting.contexts, len(self.decoding))[1]
            return None, contexts
        if fitting.ordered is None:
            decodes = fitting.decodes
            if decodes is None:
                decodes = sorted(self.decoding.members, key=place)
            fitting.ordered = [*decodes, *fitting.contexts]
        return self._pick(fitting.ordered, 0)

    def _pick(self, line: list[Request], used: int) -> tuple[list[Request], list[tuple[Request, int]]]:
        """Hand the tokens that *used* leaves to *line* in order."""
        budget = self.max_num_tokens - used * self.width
        decodes: list[Request] = []
        contexts: list[tuple[Request, int]] = []
        for request in line[: self.max_num_seqs - used]:
            decodes_now = request in self.decoding
            tokens = self.width if decodes_now else request.target - request.computed
            if (decodes_now or not self.chunked) and tokens > budget:
                break
            if decodes_now:
                decodes.append(request)
            else:
                contexts.append((request, tokens))
            if decodes_now or not self.chunked:
                budget -= tokens
        return decodes, self._cut(contexts, budget) if self.chunked and contexts else contexts

    def _cut(self, contexts: list[tuple[Request, int]], budget: int) -> list[tuple[Request, int]]:
        """Chunks where the prompts do not fit as they are; those that go on later are first."""
        remaining = [tokens for _, tokens in contexts]
        if sum(remaining) <= budget:
            return contexts
        chunks = cut_prompts(self.chunking_policy, remaining, budget, self.unit)
        rows = [
            (r, chunk, chunk == tokens) for (r, tokens), chunk in zip(contexts, chunks, strict=True) if chunk
        ]
        rows.sort(key=lambda row: row[2])
        return [(request, chunk) for request, chunk, _ in rows]

    # carrying it out

    def _pause(self, batch: Batch, request: Request) -> None:
        """*request* loses its blocks and keeps its place; what it has generated is prompt from now on."""
        tokens = request.computed
        if request in self.decoding:
            self._leave(request)
            tokens = request.computed
            request.target = request.prompt_length + request.generated
            insort(self._contexts, request, key=place)
        self._partial.pop(request, None)
        del self.running[request]
        self.blocks.release(request, tokens, returns=True)
        request.status = PREEMPTED
        request.computed = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        batch.preempted.append(request)
        self._last_started = max((r.order for r in self.running), default=-1)

    def _leave(self, request: Request) -> None:
        self.decoding.leave(request)
        request.num_blocks = self.blocks.blocks_for(request.computed)
        self._owed -= self._to_completion(request)
        self._held -= request.num_blocks

    def _compute(self, batch: Batch, request: Request, tokens: int) -> None:
        """The next *tokens* of a prompt, less what was found; the first bring the blocks for all of it."""
        if request.status is not RUNNING:
            cached = self.blocks.allocate(request)
            request.computed = request.cached_tokens = batch.cached[request] = cached
            request.status = RUNNING
            self.running[request] = self._partial[request] = None
            self._last_started = max(self._last_started, request.order)
            if cached + tokens < request.target:
                size = self.blocks.block_size
                tokens = (cached + tokens) // size * size - cached if self.blocks.reuse else tokens
            else:
                tokens = request.target - cached
        batch.prefills.append((request, tokens, request.computed))
        request.computed += tokens

    def _decode(self, batch: Batch, decodes: list[Request] | None) -> None:
        decoding = self.decoding
        if decodes is not None:
            batch.decodes = decodes
            taken = set(decodes)
            left_out = [request for request in decoding.members if request not in taken]
            need = sum(map(decoding.needs_block, decodes))
        else:
            left_out, need = [], decoding.blocks_next
        batch.num_decodes = len(decoding) - len(left_out)
        if not batch.num_decodes:
            return
        self.blocks.take(need)
        self._held += need
        decoding.advance()
        for request in left_out:
            decoding.stall(request)
        batch.stalled = left_out
        batch.decode_context = decoding.computed - sum(map(decoding.tokens, left_out))

    def _join(self, batch: Batch) -> None:
        """Requests whose last prompt token is in this batch generate from the next iteration on."""
        for request, _, _ in batch.prefills:
            if request.computed == request.target:
                self._contexts.remove(request)
                del self._partial[request]
                request.generated += 1
                self.decoding.join(request)
                self._owed += self._to_completion(request)
                self._held += request.num_blocks
                batch.joining.append(request)

    # after an iteration

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        done = set()
        for request in sorted(ended, key=place):
            self._finish(request)
            done.add(request)
        if self.blocks.reuse:
            for request in batch.joining:
                if request not in done and request.status is RUNNING:
                    self.blocks.insert(
                        request, request.target // self.blocks.block_size * self.blocks.block_size
                    )

    def _finish(self, request: Request) -> None:
        if request in self.decoding:
            self._leave(request)
        else:
            self._contexts.remove(request)
            self._partial.pop(request, None)
        if request.status is RUNNING:
            del self.running[request]
            self.blocks.release(request, request.computed)
        request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request in self.queue:
            self.queue.remove(request)
            request.status = FINISHED
        else:
            self._finish(request)

    # many iterations at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        return 1 + self.decoding.iterations_within(self.blocks.free, limit - 1)

    def advance(self, batch: Batch, n: int) -> None:
        decoding = self.decoding
        need = decoding.blocks_over(n)
        self.blocks.take(need)
        self._held += need
        decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.blocks.num_blocks - self.blocks.free

    @property
    def num_blocks(self) -> int:
        return self.blocks.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.blocks.cached

    def waste(self) -> tuple[float, float, float, float]:
        tokens = self.decoding.computed + sum(request.computed for request in self._partial)
        shared = self.blocks.num_shared * self.blocks.block_size
        return 0.0, self.blocks_used * self.blocks.block_size + shared - tokens, 0.0, shared


def _defaults(device: Device) -> dict[str, Any]:
    """``BuildConfig``: 2048 requests, 8192 tokens (builder.py)."""
    return {"max_batch_size": 2048, "max_num_tokens": 8192}


def _system(name: str, policy: str, summary: str) -> System:
    return System(
        name=name,
        version="5f480b7a",
        summary=summary,
        source="TensorRT-LLM at 5f480b7a, tensorrt_llm/_torch/pyexecutor/scheduler/scheduler.py",
        status="recorded",
        policy="trtllm:TensorRtLlm",
        techniques=frozenset(("pipeline",)),
        fixed={"capacity_scheduler_policy": policy},
        defaults=_defaults,
        block_size=32,
        block_sizes=TENSORRT_LLM,
        memory="trtllm",
        traits="trtllm",
        capacity="num_blocks",
        speculation=("draft", "eagle", "mtp", "ngram"),
        speculative="trtllm_speculative:SpeculativeTensorRtLlm",
        speculation_ahead=("eagle", "mtp"),
    )


SYSTEMS = (
    _system("tensorrt-llm", NO_EVICT, "in-flight batching; admits what fits to its last token, never evicts"),
    _system("tensorrt-llm-max-utilization", MAX_UTILIZATION, "admits what fits now; pauses the last started"),
    _system("tensorrt-llm-static", STATIC, "static batches: prompts start when nobody generates"),
)
