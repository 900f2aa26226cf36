"""The part of llama.cpp's server that seats requests: its queue, its slots and what they keep.

A request waits until a slot is free; a released slot lets exactly one deferred request back to the front of
the queue. Seating may exchange a slot's contents with the prompt cache in host memory, and saves what idle
slots hold (`process_single_task` in tools/server/server-context.cpp, `pop_deferred_task` in
server-queue.cpp).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Hashable
from typing import Any, ClassVar

from simulator.compiled.attributes import mypyc_attr
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Scheduler
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.llamacpp_batch import Step
from simulator.scheduling.llamacpp_cache import PromptCache
from simulator.scheduling.llamacpp_cells import Cells
from simulator.scheduling.llamacpp_slots import (
    GENERATING,
    IDLE,
    STARTED,
    WAITS,
    Completion,
    Slot,
    least_recently_used,
    most_similar,
)
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.token_runs import Tokens

__all__ = ["LlamaServer"]

PAD = 256
"""Contexts are multiples of this many tokens (src/llama-context.cpp)."""
AUTO_SLOTS = 4
POSITION_BYTES = 12
"""Position and sequence of a token in a saved state, beside its KV."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LlamaServer(Scheduler):
    """Queue and slots; keywords are the server's options.

    *n_ctx* tokens of context in all (0: the model's, *max_model_len*), of which a slot has its share, or
    with *kv_unified* may use all up to *kv_unified_per_slot* tokens; *n_parallel* below 1 means four slots
    and a unified cache. *num_kv_cells* is what the memory can hold. *cache_ram_mib* is the size of the
    prompt cache in host memory (0: none, below 0: *n_ctx* tokens), an entry has *kv_bytes_per_token* for
    each token. *n_gpu_layers* (below 0: all), *split_mode* and *tensor_split* place the layers; they change
    times, not decisions. *uniform* names content whose tokens are all alike.
    """

    quiet: ClassVar[bool] = True
    forks: ClassVar[bool] = True

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
        self.width = 1
        """Tokens that a generating slot has in a batch."""
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
        self._step: Step | None = None
        self._neighbours: bool | None = None  # whether the generating slots follow each other
        self._shifts: list[tuple[int, int, int, Request]] = []  # when contexts are full
        self._num_shifts = 0

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

    def _children(self, request: Request) -> list[Slot]:
        """The slots of the further completions of *request*."""
        found = (child.state.slot for child in self.running if child.state.parent is request)
        return sorted((slot for slot in found if slot.request is not request), key=lambda slot: slot.index)

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

    def _join(self, request: Request) -> None:
        self.decoding.join(request)
        self._neighbours = None
        if self.context_shift:
            self._push_shift(request, request.computed)

    def _push_shift(self, request: Request, tokens: int) -> None:
        """Note when the context of *request*, which has *tokens* tokens, will be full."""
        at = self.decoding.iteration + max(self.n_ctx - 1 - tokens, 0)
        request.state.full_at = at
        self._num_shifts += 1
        heapq.heappush(self._shifts, (at, request.state.slot.index, self._num_shifts, request))

    def _clear(self, slot: Slot) -> None:
        self._note("clear", slot.index, len(slot.tokens))
        slot.tokens = Tokens()
        self.cells.keep(slot.index, 0)

    # ends

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
        held = self.decoding.computed
        if self._prompting:
            busy = (slot for slot in self.slots if slot.state is not IDLE and slot.state is not GENERATING)
            held += sum(self.cells.held(slot.index) for slot in busy)
        return float(self.blocks_used - held), 0.0, 0.0, 0.0


def _padded(tokens: int) -> int:
    return max(-(-tokens // PAD), 1) * PAD
