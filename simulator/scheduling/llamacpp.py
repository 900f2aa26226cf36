"""llama.cpp's server: slots, one loop, no preemption.

A request waits until one of ``n_parallel`` slots is free. Each step takes one token of every generating
slot, then prompt tokens of the slots in the order of their number, not of arrival, until the batch has
``n_batch`` tokens; without ``cont_batching`` prompts have steps of their own. Every call of the model
within a step is a batch of its own here: where the unified KV cache has no cells for all tokens, idle slots
are cleared one by one, then the call is halved and halved again; what fails with a single token fails every
request that has a slot. A released slot lets exactly one deferred request back into the queue.

Read in llama.cpp at 0c1e57098 (tools/server/server-context.cpp, server-queue.cpp), as vendored in
llama-cpp-python 0.3.36, whose recorded decisions are reproduced. There deferred requests that nobody
releases wait until the next request comes; here an idle server takes them up. `llamacpp_slots` has the
choice of a slot, `llamacpp_cache` the prompt cache in host memory.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Hashable, Iterable
from typing import Any

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.llamacpp_batch import Row, micro_batches
from simulator.scheduling.llamacpp_cache import PromptCache
from simulator.scheduling.llamacpp_cells import Cells
from simulator.scheduling.llamacpp_slots import (
    DONE,
    GENERATING,
    IDLE,
    PROMPT,
    STARTED,
    WAITS,
    Completion,
    Slot,
    least_recently_used,
    most_similar,
)
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import System
from simulator.scheduling.token_runs import Tokens

__all__ = ["SYSTEMS", "LlamaCpp"]

PAD = 256
"""Contexts are multiples of this many tokens (src/llama-context.cpp)."""
AUTO_SLOTS = 4
POSITION_BYTES = 12
"""Position and sequence of a token in a saved state, beside its KV."""
EXCEEDED = "the unified KV cache is full"


class _Part:
    """Tokens of one slot in a step that are still to compute; *whole*: they end its prompt."""

    __slots__ = ("count", "decodes", "slot", "whole")

    def __init__(self, slot: Slot, count: int, *, decodes: bool = False, whole: bool = False) -> None:
        self.slot = slot
        self.count = count
        self.decodes = decodes
        self.whole = whole


class _Step:
    """One pass of the loop: *parts* in batch order, done up to *offset*, and the next call's size."""

    __slots__ = ("n_batch", "offset", "parts", "size")

    def __init__(self, n_batch: int) -> None:
        self.n_batch = n_batch
        self.parts: deque[_Part] = deque()
        self.size = 0
        self.offset = 0

    def add(self, part: _Part) -> None:
        self.parts.append(part)
        self.size += part.count


class LlamaCpp(Scheduler):
    """The server's loop; keywords are its options.

    *n_ctx* tokens of context in all (0: the model's, *max_model_len*), of which a slot has its share, or
    with *kv_unified* may use all up to *kv_unified_per_slot* tokens; *n_parallel* below 1 means four slots
    and a unified cache. *num_kv_cells* is what the memory can hold. *cache_ram_mib* is the size of the
    prompt cache in host memory (0: none, below 0: *n_ctx* tokens), an entry has *kv_bytes_per_token* for
    each token. *n_gpu_layers* (below 0: all), *split_mode* and *tensor_split* place the layers; they change
    times, not decisions. *uniform* names content whose tokens are all alike.
    """

    quiet = True
    forks = True

    def __init__(
        self,
        *,
        num_kv_cells: int,
        n_ctx: int = 0,
        max_model_len: int = 131072,
        n_parallel: int = -1,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        kv_unified: bool | None = None,
        kv_unified_per_slot: int = 0,
        cont_batching: bool = True,
        cache_ram_mib: int = 8192,
        cache_idle_slots: bool = True,
        cache_reuse: int = 0,
        slot_prompt_similarity: float = 0.1,
        context_shift: bool = False,
        kv_bytes_per_token: int = 131072,
        n_gpu_layers: int = -1,
        split_mode: str = "layer",
        tensor_split: tuple[float, ...] = (),
        uniform: Container[Hashable] = (),
        explicit: bool = False,
    ) -> None:
        num_slots = n_parallel if n_parallel > 0 else AUTO_SLOTS
        super().__init__(max_num_seqs=num_slots, block_size=1, explicit=explicit)
        for name, value in (("n_batch", n_batch), ("n_ubatch", n_ubatch), ("num_kv_cells", num_kv_cells)):
            if value < 1:
                raise ConfigurationError(f"{name} {value}: must be at least 1")
        if n_ctx > num_kv_cells:
            raise ConfigurationError(f"n_ctx {n_ctx}: the memory holds the KV of {num_kv_cells} tokens")
        if split_mode not in ("none", "layer", "row"):
            raise ConfigurationError(f"split_mode {split_mode!r}: must be none, layer or row")
        self.unified = n_parallel < 1 if kv_unified is None else kv_unified
        total = n_ctx or min(max_model_len, num_kv_cells)
        share = _padded(total if self.unified else total // num_slots)
        self.n_ctx = min(share, kv_unified_per_slot or share, max_model_len)
        """The context of a slot."""
        self.num_streams = 1 if self.unified else num_slots
        self.cells = Cells(share * self.num_streams, num_slots)
        self.partition = share
        self.n_batch = min(n_batch, self.cells.num_cells)
        self.n_ubatch = min(n_ubatch, self.n_batch)
        self.cont_batching = cont_batching
        self.cache_reuse = cache_reuse
        self.similarity = slot_prompt_similarity
        self.context_shift = context_shift
        self.placement = (n_gpu_layers, split_mode, tensor_split)
        self.uniform = uniform
        self.cache: PromptCache | None = None
        if cache_ram_mib:
            base = 44 + 4 * self.num_streams  # the state's header
            limit = cache_ram_mib * 2**20 if cache_ram_mib > 0 else -1
            size = kv_bytes_per_token + POSITION_BYTES
            self.cache = PromptCache(limit, self.cells.num_cells, base, size, self._note)
        self.cache_idle_slots = cache_idle_slots
        self.slots = [Slot(i) for i in range(num_slots)]
        self.queue: deque[Request] = deque()
        self.deferred: dict[Request, None] = {}
        self.journal: list[tuple[Any, ...]] = []
        """With ``explicit``: what happened since the latest step began."""
        self._num_wishes = 0  # requests that wish for a slot
        self._num_requests = 0
        self._num_releases = 0
        self._prompting = 0  # slots with a request that does not generate yet
        self._step: _Step | None = None
        self._neighbours: bool | None = None  # whether the generating slots follow each other
        self._shifts: list[tuple[int, int, int, Request]] = []  # when contexts are full

    def _note(self, *entry: Any) -> None:
        if self.explicit:
            self.journal.append(entry)

    # arrivals

    def add(self, request: Request, now: float) -> None:
        if request.n > len(self.slots):
            raise CapacityError(f"n {request.n}: there are {len(self.slots)} slots")
        completion = request.state or Completion()
        request.state = completion
        own = (self._num_requests,)
        self._num_requests += 1
        completion.prompt = Tokens.of_prompt(request, own, self.uniform)
        completion.output = request.output_id if request.output_id is not None else (*own, "output")
        if not self.context_shift:
            request.max_tokens = min(request.max_tokens, max(self.n_ctx - request.prompt_length, 1))
        self._num_wishes += completion.id_slot >= 0
        self.queue.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.queue) + len(self.deferred)

    @property
    def mid_step(self) -> bool:
        """Whether the server's current step has further calls to make."""
        return self._step is not None

    # from the queue into the slots

    def _launch_all(self) -> None:
        while self.queue:
            request = self.queue.popleft()
            slot = self._choose(request)
            children = self._seats(request, slot) if slot is not None and slot.state is IDLE else None
            if slot is None or children is None:
                self._note("defer", request.id)
                self.deferred[request] = None
                continue
            how = self._how
            for child, seat in zip(self._fork(request), children, strict=True):
                self._launch(child, seat, WAITS)
                self._note("launch", child.id, seat.index, "child")
            self._launch(request, slot, STARTED)
            self._note("launch", request.id, slot.index, how)
            if self.cache_idle_slots and self.cache is not None:
                self._save_idle()

    def _seats(self, request: Request, slot: Slot) -> list[Slot] | None:
        """Idle slots for the further completions of *request*; None if there are not enough."""
        if request.n == 1:
            return []
        idle = [other for other in self.slots if other.state is IDLE and other is not slot]
        return idle[: request.n - 1] if len(idle) >= request.n - 1 else None

    def _fork(self, request: Request) -> list[Request]:
        if request.n == 1:
            return []
        group = SequenceGroup(request, request.n)
        request.group = group
        children = [group.child(request, id=f"{request.id}/{i}") for i in range(1, request.n)]
        for child in children:
            child.state = Completion(output=request.state.output, parent=request)
        return children

    def _launch(self, request: Request, slot: Slot, state: str) -> None:
        if request.state.id_slot >= 0:
            self._num_wishes -= 1
        request.status = RUNNING
        request.state.slot = slot
        slot.request, slot.state, slot.pushed = request, state, 0
        self.running[request] = None
        self._prompting += 1

    def _choose(self, request: Request) -> Slot | None:
        """The slot for *request*, busy or not; with its contents exchanged for what the prompt cache has."""
        self._how = "id"
        prompt, wish = request.state.prompt, request.state.id_slot
        if wish < 0 and len(self.running) == len(self.slots):
            return None
        candidates = [self.slots[wish % len(self.slots)]] if wish >= 0 else self.slots
        slot: Slot | None = candidates[0] if wish >= 0 else None
        exchange = False
        if self.similarity:
            found, similarity = most_similar(candidates, prompt, self.similarity)
            if found is not None and wish < 0:
                slot, self._how = found, "lcp"
            if slot is not None and self._length(slot):
                exchange = bool(similarity * len(prompt) / self._length(slot) < 0.5)
        if slot is None:
            slot, self._how, exchange = least_recently_used(self.slots), "lru", True
        if exchange and slot is not None and self.cache is not None:
            self._exchange(slot, prompt)
        return slot

    def _exchange(self, slot: Slot, prompt: Tokens) -> None:
        """Save what *slot* holds and load a saved sequence that suits *prompt* better, if there is one."""
        assert self.cache is not None
        self._settle(slot)
        if len(slot.tokens):
            self.cache.save(slot.tokens, slot.index)
        entry = self.cache.find(slot.tokens, prompt)
        if entry is None:
            return
        self.cells.keep(slot.index, 0)
        if self.unified and len(entry.tokens) > self.cells.free:
            self._clear(slot)
            return
        self._replace(slot, self.cache.take(entry))
        self.cells.grow(slot.index, len(slot.tokens))

    def _save_idle(self) -> None:
        """Idle slots are saved; those of a unified cache make room."""
        assert self.cache is not None
        for slot in self.slots:
            if slot.state is IDLE:
                if len(slot.tokens):
                    self.cache.save(slot.tokens, slot.index)
                if self.unified:
                    self._clear(slot)

    # what slots hold

    def tokens(self, request: Request) -> int:
        """Tokens that the slot of *request*, which runs, holds."""
        return self._length(request.state.slot)

    def _length(self, slot: Slot) -> int:
        """Tokens that *slot* holds."""
        request = slot.request
        return (
            self.decoding.tokens(request) if request is not None and request.phase >= 0 else len(slot.tokens)
        )

    def _settle(self, slot: Slot) -> None:
        """List the output that *slot* has generated since its tokens were last written down."""
        new = self._length(slot) - len(slot.tokens)
        if new:
            assert slot.request is not None
            name = slot.request.state.output
            stride = 0 if name in self.uniform else 1
            slot.tokens.append(name, stride, slot.pushed * stride, new)
            slot.pushed += new

    def _replace(self, slot: Slot, tokens: Tokens) -> None:
        """*slot* holds *tokens* from now on, whatever its request is doing."""
        slot.tokens = tokens
        request = slot.request
        if request is not None and request.phase >= 0:
            self.decoding.leave(request)
            request.computed = len(tokens)
            self._join(request)

    def _clear(self, slot: Slot) -> None:
        self._note("clear", slot.index, len(slot.tokens))
        slot.tokens = Tokens()
        self.cells.keep(slot.index, 0)

    # one step

    def schedule(self, now: float) -> Batch | Wait | None:
        batch = Batch()
        if self._step is not None:
            return self._call(batch, self._step)
        if self.explicit:
            self.journal = []
        if not self.running and not self.queue and self.deferred:
            self._undefer()
        if self.queue:
            self._launch_all()
        if not self.running:
            return None
        self._note("step")
        while self._shifts and self._shifts[0][0] <= self.decoding.iteration:
            self._shift(batch, heapq.heappop(self._shifts))
        decodes = len(self.decoding)
        room = self.cells.free if self.unified else decodes
        if (
            not self._prompting
            and not self.explicit
            and 0 < decodes <= min(self.n_ubatch, room)
            and self._adjacent()
        ):
            return self._decode_all(batch)
        return self._call(batch, self._build(batch))

    def _adjacent(self) -> bool:
        """Whether the generating slots make one micro-batch."""
        if self._neighbours is None:
            seats = [slot.index for slot in self.slots if slot.state is GENERATING]
            self._neighbours = self.unified or not seats or seats[-1] - seats[0] < len(seats)
        return self._neighbours

    def _decode_all(self, batch: Batch) -> Batch:
        decoding = self.decoding
        self._take_cells(1)
        decoding.advance()
        batch.num_decodes = len(decoding)
        batch.decode_context = decoding.computed
        batch.iteration = decoding.iteration
        batch.repeatable = True
        return batch

    def _take_cells(self, n: int) -> None:
        self.cells.spread([r.state.slot.index for r in self.decoding.members], n)

    def _build(self, batch: Batch) -> _Step:
        """Fill a batch: a token of each generating slot, then prompts in the order of the slots."""
        step = _Step(self.n_batch)
        for slot in self.slots:
            if slot.state is GENERATING:
                step.add(_Part(slot, 1, decodes=True))
        if self.cont_batching or not step.size:
            for slot in self.slots:
                if step.size >= self.n_batch:
                    break
                if slot.state is STARTED:
                    self._start_prompt(batch, slot)
                if slot.state is PROMPT:
                    self._add_prompt(step, slot)
        return step

    def _start_prompt(self, batch: Batch, slot: Slot) -> None:
        """Find what of the prompt *slot* has; a prompt that does not fit its context is refused now."""
        request = slot.request
        assert request is not None
        prompt: Tokens = request.state.prompt
        if len(prompt) >= self.n_ctx:
            reason = f"a prompt of {len(prompt)} tokens does not fit the slot's context of {self.n_ctx}"
            for seat in [slot, *self._children(request)]:
                assert seat.request is not None
                batch.rejected.append((seat.request, reason))
                self._note("error", seat.request.id, "prompt")
                self._release(seat)
            return
        past = self._reused(slot, prompt) if request.state.cache_prompt else 0
        past = min(past, len(prompt) - 1)
        slot.tokens = prompt.part(0, past)
        self.cells.keep(slot.index, past)
        slot.state = PROMPT
        request.cached_tokens = request.computed = past
        batch.cached[request] = past

    def _reused(self, slot: Slot, prompt: Tokens) -> int:
        """Leading tokens of *prompt* whose KV *slot* has, or can move into place."""
        past = slot.tokens.common_prefix(prompt)
        if self.cache_reuse > 0:
            for at, to, n in slot.tokens.chunks(prompt, past, self.cache_reuse):
                self._note("chunk", slot.index, n, at, at + n, to, to + n)
                past += n
        return past

    def _add_prompt(self, step: _Step, slot: Slot) -> None:
        assert slot.request is not None
        left = len(slot.request.state.prompt) - len(slot.tokens)
        count = min(left, self.n_batch - step.size)
        if count == left:
            slot.state = DONE
        step.add(_Part(slot, count, whole=count == left))

    def _children(self, request: Request) -> list[Slot]:
        """The slots of the further completions of *request*."""
        found = (child.state.slot for child in self.running if child.state.parent is request)
        return sorted((slot for slot in found if slot.request is not request), key=lambda slot: slot.index)

    # calls of the model

    def _call(self, batch: Batch, step: _Step) -> Batch:
        """The next call of *step* for whose tokens there are cells."""
        self._step = step
        batch.iteration = self.decoding.iteration
        size = min(step.n_batch, step.size - step.offset)
        while self.unified and size > self.cells.free:
            self._note("call", size, 1)
            if step.n_batch == 1:
                self._fail_all(batch)
                return batch
            if not self._purge():
                step.n_batch //= 2
            self._note("retry", step.offset, step.n_batch)
            size = min(step.n_batch, step.size - step.offset)
        if size:
            self._note("call", size, 0)
            self._compute(batch, step, size)
        step.n_batch = self.n_batch
        step.offset += size
        if step.offset >= step.size:
            self._step = None
        return batch

    def _purge(self) -> bool:
        """Clear the first idle slot that holds anything."""
        for slot in self.slots:
            if slot.state is IDLE and len(slot.tokens):
                self._note("purge", slot.index, len(slot.tokens))
                self._clear(slot)
                return True
        return False

    def _fail_all(self, batch: Batch) -> None:
        """Every request with a slot fails, and its slot is cleared."""
        step, self._step = self._step, None
        assert step is not None
        pending = {part.slot: part.count for part in step.parts}
        for slot in self.slots:
            request = slot.request
            if request is not None:
                self._settle(slot)
                slot.tokens.append("never computed", 1, 0, pending.get(slot, 0))
                batch.failed.append((request, EXCEEDED))
                self._note("error", request.id, "exceeded")
                self._release(slot)
                self._clear(slot)

    def _compute(self, batch: Batch, step: _Step, size: int) -> None:
        rows: list[Row] = []
        decodes: list[Request] = []
        whole: list[Request] = []
        while size:
            part = step.parts[0]
            request = part.slot.request
            assert request is not None
            count = min(part.count, size)
            rows.append((part.slot.index, request, count, self._length(part.slot), part.decodes))
            self.cells.grow(part.slot.index, count)
            part.count -= count
            size -= count
            if part.decodes:
                decodes.append(request)
            else:
                self._extend(part.slot, request, count)
                batch.prefills.append((request, count, request.computed - count))
            if not part.count:
                step.parts.popleft()
                if part.whole:
                    whole.append(request)
        self._advance(batch, decodes)
        if any(slot.state is DONE for slot in self.slots):
            self._copy_to_children()
        for request in whole:
            self._begin_output(batch, request)
        batch.joining.sort(key=lambda request: request.state.slot.index)
        batch.iteration = self.decoding.iteration
        self._cut(batch, rows)

    def _extend(self, slot: Slot, request: Request, count: int) -> None:
        at = len(slot.tokens)
        slot.tokens.extend(request.state.prompt, at, at + count)
        request.computed = at + count

    def _advance(self, batch: Batch, decodes: list[Request]) -> None:
        decoding = self.decoding
        if self.explicit:
            batch.decodes = decodes
        if not decodes:
            return
        decoding.advance()
        if len(decodes) < len(decoding):
            taken = set(decodes)
            batch.stalled = [request for request in decoding.members if request not in taken]
            for request in batch.stalled:
                decoding.stall(request)
        batch.num_decodes = len(decodes)
        batch.decode_context = sum(decoding.tokens(request) for request in decodes)

    def _copy_to_children(self) -> None:
        """Further completions get what is computed of their prompt."""
        for slot in self.slots:
            if slot.state is DONE and slot.request is not None and slot.request.n > 1:
                for child in self._children(slot.request):
                    if child.state is WAITS:
                        self._note("copy", slot.index, child.index)
                        child.state = DONE
                        child.tokens = slot.request.state.prompt.part(0, slot.request.prompt_length)
                        self.cells.keep(child.index, 0)
                        if self.unified:
                            self.cells.share(slot.index, child.index)
                        else:
                            self.cells.grow(child.index, self.cells.held(slot.index))

    def _begin_output(self, batch: Batch, request: Request) -> None:
        """*request*, and further completions of it, get their first token."""
        seats = [request.state.slot]
        if request.n > 1:
            seats += [child for child in self._children(request) if child.state is DONE]
        for slot in seats:
            sequence = slot.request
            slot.state = GENERATING
            sequence.computed = len(slot.tokens)
            sequence.generated += 1
            self._prompting -= 1
            self._join(sequence)
            batch.joining.append(sequence)

    def _join(self, request: Request) -> None:
        self.decoding.join(request)
        self._neighbours = None
        if self.context_shift:
            at = self.decoding.iteration + max(self.n_ctx - 1 - request.computed, 0)
            heapq.heappush(self._shifts, (at, request.state.slot.index, id(request), request))

    def _cut(self, batch: Batch, rows: list[Row]) -> None:
        """Several micro-batches are several forwards."""
        tokens = sum(row[2] for row in rows)
        one_row_each = self.unified or len(rows) == 1 or (not batch.prefills and self._adjacent())
        if tokens > self.n_ubatch or not one_row_each:
            forwards = micro_batches(rows, self.n_ubatch, unified=self.unified)
            if len(forwards) > 1:
                batch.forwards = forwards
        if batch.forwards is None and not batch.prefills and not batch.stalled and not self._prompting:
            batch.repeatable = True

    # context shift

    def _shift(self, batch: Batch, due: tuple[int, int, int, Request]) -> None:
        """A slot whose context is full forgets *n_discard* tokens, or half, after its first *n_keep*."""
        request = due[3]
        slot: Slot = request.state.slot
        tokens = self._length(slot)
        if slot.request is not request or request.phase < 0 or tokens + 1 < self.n_ctx:
            return
        wish: Completion = request.state
        if request.group is not None:
            reason = "a prompt shared by several completions cannot be shifted"
            batch.failed.append((request, reason))
            self._note("error", request.id, "shared")
            self._release(slot)
            return
        keep = min(request.prompt_length if wish.n_keep < 0 else wish.n_keep, self.n_ctx - 4)
        left = tokens - keep
        discard = max(min(wish.n_discard or left // 2, left - 1), 0)
        self._note("shift", slot.index, keep, left, discard)
        self._settle(slot)
        wish.truncated = True
        self.cells.discard(slot.index, keep, discard)
        self._replace(slot, slot.tokens.without(keep, keep + discard))

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in sorted(ended, key=lambda request: request.state.slot.index):
            if not self.context_shift and self._length(request.state.slot) + 1 >= self.n_ctx:
                request.state.truncated = True
            self._release(request.state.slot)

    def _release(self, slot: Slot) -> None:
        """The request of *slot* is done; one deferred request may try again."""
        request = slot.request
        assert request is not None
        self._settle(slot)
        tokens = len(slot.tokens)
        if request.phase >= 0:
            self.decoding.leave(request)
            self._neighbours = None
        else:
            self._prompting -= 1
        del self.running[request]
        request.status = FINISHED
        slot.request, slot.state = None, IDLE
        self._num_releases += 1
        slot.last_used = self._num_releases
        if request.state.parent is not None:
            self._clear(slot)
        back = self._undefer(slot.index)
        name = () if back is None else (back.id,)
        self._note("release", request.id, tokens, int(request.state.truncated), *name)

    def _undefer(self, slot: int = -1) -> Request | None:
        """The first deferred request that wishes for *slot*, else the first, goes to the front of the queue."""
        if not self.deferred:
            return None
        request = next(iter(self.deferred))
        if self._num_wishes:
            request = next((r for r in self.deferred if r.state.id_slot == slot), request)
        del self.deferred[request]
        self.queue.appendleft(request)
        return request

    def cancel(self, request: Request, now: float) -> None:
        if request.status is not RUNNING:
            self._num_wishes -= request.state.id_slot >= 0
            if request in self.deferred:
                del self.deferred[request]
            else:
                self.queue.remove(request)
            request.status = FINISHED
            return
        waits = [seat for seat in self._children(request) if seat.state is WAITS]
        for slot in [request.state.slot, *waits]:
            self._drop_parts(slot)
            self._release(slot)

    def _drop_parts(self, slot: Slot) -> None:
        step = self._step
        if step is not None:
            gone = sum(part.count for part in step.parts if part.slot is slot)
            step.parts = deque(part for part in step.parts if part.slot is not slot)
            step.size -= gone
            if step.offset >= step.size:
                self._step = None

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or self.queue or self._prompting:
            return 1
        limit -= 1
        if self.unified:
            limit = min(limit, self.cells.free // len(self.decoding))
        if self._shifts:
            limit = min(limit, max(self._shifts[0][0] - self.decoding.iteration, 0))
        return 1 + limit

    def advance(self, batch: Batch, n: int) -> None:
        self._take_cells(n)
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        if not self.unified:
            return len(self.running) * self.partition
        return self.cells.used - self.blocks_cached

    @property
    def num_blocks(self) -> int:
        return self.cells.num_cells

    @property
    def blocks_cached(self) -> int:
        return sum(len(slot.tokens) for slot in self.slots if slot.state is IDLE)

    def waste(self) -> tuple[float, float, float, float]:
        if self.unified:
            return 0.0, 0.0, 0.0, 0.0
        held = sum(self.cells.held(slot.index) for slot in self.slots if slot.state is not IDLE)
        return float(self.blocks_used - held), 0.0, 0.0, 0.0


def _padded(tokens: int) -> int:
    return max(-(-tokens // PAD), 1) * PAD


SYSTEMS = (
    System(
        name="llama.cpp",
        version="0c1e57098 (2026-10-01)",
        summary="slots, prompts in the order of slots, prompt cache in host memory, no preemption",
        source="llama.cpp 0c1e57098, tools/server/server-context.cpp",
        status="recorded",
        policy="llamacpp:LlamaCpp",
        fixed={"uniform": ()},
        block_size=1,
        memory="llamacpp",
        traits="llamacpp",
        capacity="num_kv_cells",
        capacity_in_tokens=True,
    ),
    System(
        name="llama-cpp-python",
        version="0.3.36",
        summary="one request at a time behind a lock, keeps the last one's KV; clients that do not stream",
        source="llama-cpp-python 0.3.36, llama_cpp/server/app.py, llama_cpp/llama.py",
        status="read",
        policy="llamacpp:LlamaCpp",
        fixed={
            "uniform": (),
            "n_parallel": 1,
            "kv_unified": False,
            "cache_ram_mib": 0,
            "slot_prompt_similarity": 0.0,
        },
        defaults=lambda device: {"n_ctx": 2048, "n_batch": 512},
        block_size=1,
        memory="llamacpp",
        traits="llamacpp",
        capacity="num_kv_cells",
        capacity_in_tokens=True,
    ),
)
