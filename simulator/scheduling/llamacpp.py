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
from collections.abc import Iterable

from simulator.compiled.attributes import mypyc_attr
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.llamacpp_batch import Part, Row, Step, micro_batches
from simulator.scheduling.llamacpp_server import LlamaServer
from simulator.scheduling.llamacpp_slots import (
    DONE,
    GENERATING,
    IDLE,
    PROMPT,
    STARTED,
    WAITS,
    Completion,
    Slot,
)
from simulator.scheduling.offloading import CPU, cpu_layers
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import Device, System
from simulator.scheduling.token_runs import Tokens

__all__ = ["SYSTEMS", "LlamaCpp"]

EXCEEDED = "the unified KV cache is full"


@mypyc_attr(allow_interpreted_subclasses=True)
class LlamaCpp(LlamaServer):
    """The server's loop, over the seats of `LlamaServer`."""

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
            and 0 < decodes * self.width <= min(self.n_ubatch, room)
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
        batch.repeatable = not batch.failed
        return batch

    def _take_cells(self, n: int) -> None:
        self.cells.spread([r.state.slot.index for r in self.decoding.members], n)

    def _build(self, batch: Batch) -> Step:
        """Fill a batch: a token of each generating slot, then prompts in the order of the slots."""
        step = Step(self.n_batch)
        for slot in self.slots:
            if slot.state is GENERATING:
                step.add(Part(slot, self.width, decodes=True))
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

    def _add_prompt(self, step: Step, slot: Slot) -> None:
        assert slot.request is not None
        prompt: Tokens = slot.request.state.prompt
        if len(slot.tokens) >= len(prompt):
            # A wish for this busy slot loaded something longer. The server would never finish such a prompt.
            slot.tokens = prompt.part(0, len(prompt) - 1)
            self.cells.keep(slot.index, len(slot.tokens))
        left = len(prompt) - len(slot.tokens)
        count = min(left, self.n_batch - step.size)
        if count == left:
            slot.state = DONE
        step.add(Part(slot, count, whole=count == left))

    # calls of the model

    def _call(self, batch: Batch, step: Step) -> Batch:
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
        if self.width > 1 and step.parts and step.parts[0].decodes:
            size = self._uncut(step, size)
            if not size:
                self._fail_all(batch)
                return batch
        if size:
            self._note("call", size, 0)
            self._compute(batch, step, size)
        step.n_batch = self.n_batch
        step.offset += size
        if step.offset >= step.size:
            self._step = None
        return batch

    def _uncut(self, step: Step, size: int) -> int:
        """*size*, or less so that it does not end within a slot's drafts."""
        decodes = sum(part.decodes for part in step.parts)
        return size if decodes * self.width <= size else size // self.width * self.width

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

    def _compute(self, batch: Batch, step: Step, size: int) -> None:
        rows = self._take_decodes(step, size)
        decodes = [row[1] for row in rows]
        whole: list[Request] = []
        size -= len(rows) * self.width
        while size:
            part = step.parts[0]
            request = part.slot.request
            assert request is not None
            count = min(part.count, size)
            rows.append((part.slot.index, request, count, self._length(part.slot), False))
            self.cells.grow(part.slot.index, count)
            part.count -= count
            size -= count
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

    def _take_decodes(self, step: Step, size: int) -> list[Row]:
        """The decoding slots of the step, which come first, at most *size* of them."""
        rows: list[Row] = []
        parts, tokens = step.parts, self.decoding.tokens
        while (len(rows) + 1) * self.width <= size and parts and parts[0].decodes:
            slot = parts.popleft().slot
            request = slot.request
            assert request is not None
            rows.append((slot.index, request, self.width, tokens(request), True))
        self.cells.spread([row[0] for row in rows], 1)
        return rows

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
        batch.num_decodes = len(decodes)
        batch.decode_context = decoding.computed
        if len(decodes) < len(decoding):
            taken = set(decodes)
            batch.stalled = [request for request in decoding.members if request not in taken]
            for request in batch.stalled:
                decoding.stall(request)
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

    def _cut(self, batch: Batch, rows: list[Row]) -> None:
        """Several micro-batches are several forwards."""
        tokens = sum(row[2] for row in rows)
        one_row_each = self.unified or len(rows) == 1 or (not batch.prefills and self._adjacent())
        if tokens > self.n_ubatch or not one_row_each:
            forwards = micro_batches(rows, self.n_ubatch, unified=self.unified)
            if len(forwards) > 1:
                batch.forwards = forwards
        events = batch.prefills or batch.stalled or batch.rejected or batch.failed
        if batch.forwards is None and not events and not self._prompting:
            batch.repeatable = True

    # context shift

    def _shift(self, batch: Batch, due: tuple[int, int, int, Request]) -> None:
        """A slot whose context is full forgets *n_discard* tokens, or half, after its first *n_keep*."""
        at, _, _, request = due
        slot: Slot = request.state.slot
        tokens = self._length(slot)
        if slot.request is not request or request.phase < 0 or request.state.full_at != at:
            return
        if tokens + 1 < self.n_ctx:  # it missed a turn
            self._push_shift(request, tokens)
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


def _python_defaults(device: Device) -> dict[str, int]:
    return {"n_ctx": 2048, "n_batch": 512}


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
        offload=cpu_layers,
        offload_options=CPU,
        speculation=("draft", "eagle", "ngram"),
        speculative="llamacpp_speculative:SpeculativeLlamaCpp",
        speculative_fixed={"context_shift": False},
        drafts_one_by_one=True,
        draft_vocabulary_slack=128,
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
        defaults=_python_defaults,
        block_size=1,
        memory="llamacpp",
        traits="llamacpp",
        capacity="num_kv_cells",
        capacity_in_tokens=True,
        offload=cpu_layers,
        offload_options=CPU,
    ),
)
