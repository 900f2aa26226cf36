"""DeepSpeed-FastGen's Dynamic SplitFuse: decodes first, then prompts cut to fill a fixed number of tokens.

A pass decides the batch of the next one. Decoding sequences come first; one that steps into a new block and
finds none free stays behind. Prompts follow in order while tokens are left, each only if what remains of it
fits as a whole, though only its next piece gets blocks; the rest of a cut prompt goes to the front. Nothing
is preempted for want of memory until nothing at all can be scheduled: then the last sequence in the buffer
that holds KV loses it and queues again at the end.

Blocks of an ended sequence come back late: its flush is queued after the pass in which it ended, picked up
by the next one and carried out at the start of the one after that.

Read in deepspeed-mii 0.3.3 (mii/batching/ragged_batching.py) and deepspeed 0.19.8 (inference/v2); its
recorded decisions are reproduced. Two things stop the release with an exception and not this: a prompt that
does not fit while all that holds KV has ended but is not flushed (this waits for the flush), and more prompts
started by one pass than ``max_tracked_sequences`` leaves room for, which it counts before they run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "SplitFuse"]


class SplitFuse(Scheduler):
    """The policy over counted blocks; keywords are those of DeepSpeed's ragged state manager.

    *num_blocks* of *kv_block_size* tokens; a forward has at most *max_ragged_batch_size* tokens of
    *max_ragged_sequence_count* sequences, and *max_tracked_sequences* may hold KV. *max_length* limits prompt
    and output together (None: the KV cache does).
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        kv_block_size: int = 64,
        max_ragged_batch_size: int = 768,
        max_ragged_sequence_count: int = 512,
        max_tracked_sequences: int = 2048,
        max_length: int | None = None,
        explicit: bool = False,
    ) -> None:
        super().__init__(
            max_num_seqs=max_ragged_sequence_count, block_size=max(kv_block_size, 1), explicit=explicit
        )
        for name, value in (
            ("num_blocks", num_blocks),
            ("kv_block_size", kv_block_size),
            ("max_ragged_batch_size", max_ragged_batch_size),
            ("max_tracked_sequences", max_tracked_sequences),
        ):
            if value < 1:
                raise ConfigurationError(f"{name} {value}: must be at least 1")
        self._num_blocks = self.free = num_blocks
        self.block_size = kv_block_size
        self.max_tokens = max_ragged_batch_size
        self.max_tracked = max_tracked_sequences
        self.capacity = num_blocks * kv_block_size
        self.max_length = self.capacity if max_length is None else min(max_length, self.capacity)
        self.prompts: deque[Request] = deque()
        """Prompts not computed yet, whole or in part, in the order of the buffer."""
        self.tracked = 0
        """Sequences that hold KV, ended ones included until they are flushed."""
        self._halves: dict[Request, None] = {}  # prompts that are computed in part
        self._decodes: dict[Request, None] = {}  # decoding sequences in the order of the buffer
        self._ended: list[Request] = []  # their way back: ended, queued, picked up
        self._queued: list[Request] = []
        self._picked: list[Request] = []
        self._unflushed = 0

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.max_length - request.prompt_length + 1  # the last token's KV is never written
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens exceeds {self.max_length}, the longest sequence"
            )
        request.max_tokens = min(request.max_tokens, room)
        self.prompts.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.prompts) - len(self._halves)

    # one pass

    def schedule(self, now: float) -> Batch | Wait | None:
        while self.running or self.prompts:
            self.flush()
            batch = self.plan()
            if batch is not None:
                return batch
            if not (self._ended or self._queued or self._picked):
                raise CapacityError(f"nothing fits in the {self.capacity} tokens of KV and nobody holds any")
        return None

    def flush(self) -> list[Request]:
        """The start of a pass: the flushes that the last one picked up are carried out."""
        flushed, self._picked = self._picked, []
        for request in flushed:
            self.free += request.num_blocks
            self.tracked -= 1
            self._unflushed -= request.num_blocks
            request.num_blocks = 0
        return flushed

    def plan(self) -> Batch | None:
        """The end of a pass: what the next one runs. None: nothing."""
        self._picked, self._queued, self._ended = self._queued, self._ended, []
        batch = Batch()
        free = self.free
        taken = self._plan_decodes(batch)
        if self.prompts and free:
            taken = self._plan_prompts(batch, taken)
        self.free -= taken
        if not batch.num_decodes and not batch.prefills:
            if self._picked or not self.running:
                return None
            self._reset(batch)
        batch.iteration = self.decoding.iteration
        idle = not batch.prefills and not batch.preempted and len(self.decoding) == batch.num_decodes
        batch.repeatable = idle and not (self.prompts and (self._picked or self._queued))
        return batch

    # decodes

    def _plan_decodes(self, batch: Batch) -> int:
        """All if they fit; how many blocks they take."""
        decoding = self.decoding
        count, need = len(decoding), decoding.blocks_next
        if not count:
            return 0
        if self.explicit or count > self._window() or need > self.free:
            return self._plan_one_by_one(batch)
        decoding.advance()
        batch.num_decodes, batch.decode_context = count, decoding.computed
        return need

    def _window(self) -> int:
        return min(self.max_num_seqs, self.max_tokens)

    def _plan_one_by_one(self, batch: Batch) -> int:
        """Only the first of them are looked at; who is left out is first the next time."""
        decoding, taken = self.decoding, 0
        rows: dict[Request, None] = {}
        for request in list(self._decodes)[: self._window()]:
            if decoding.needs_block(request):
                if taken == self.free:
                    continue
                taken += 1
            rows[request] = None
        left_out = [request for request in self._decodes if request not in rows]
        self._decodes = dict.fromkeys([*left_out, *rows])
        batch.decodes = list(rows)
        if rows:
            decoding.advance()
            batch.stalled = left_out
            for request in left_out:
                decoding.stall(request)
        batch.num_decodes = len(rows)
        batch.decode_context = sum(map(decoding.tokens, rows))
        return taken

    # prompts

    def _plan_prompts(self, batch: Batch, taken: int) -> int:
        """Cut prompts to what is left of the tokens; how many blocks all of the batch take."""
        tokens = self.max_tokens - batch.num_decodes
        passed: list[Request] = []
        rest: Request | None = None
        while self.prompts and tokens > 0 and len(batch.prefills) + batch.num_decodes < self.max_num_seqs:
            request = self.prompts[0]
            left = request.target - request.computed
            room = self._room(request, self.free - taken)
            if room < left and left > 1:
                break
            self.prompts.popleft()
            chunk = min(left, tokens)
            if room <= 0:
                passed.append(request)
                continue
            taken += self._compute(batch, request, chunk)
            tokens -= chunk
            rest = request if chunk < left else None
        self.prompts.extendleft(reversed(passed))
        if rest is not None:
            self.prompts.appendleft(rest)
        return taken

    def _room(self, request: Request, blocks: int) -> int:
        """How many more tokens of *request* fit if it gets *blocks* new blocks."""
        if request.status is not RUNNING and self.tracked >= self.max_tracked:
            return 0
        return (request.num_blocks + blocks) * self.block_size - request.computed

    def _compute(self, batch: Batch, request: Request, chunk: int) -> int:
        if request.status is not RUNNING:
            request.status = RUNNING
            self.running[request] = self._halves[request] = None
            batch.cached[request] = 0
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk
        need = -(-request.computed // self.block_size) - request.num_blocks
        request.num_blocks += need
        if request.computed == request.target:
            request.generated += 1
            self.decoding.join(request)
            del self._halves[request]
            self._decodes[request] = None
            batch.joining.append(request)
        return need

    # when nothing moves

    def _reset(self, batch: Batch) -> None:
        """The last in the buffer that holds KV starts over; cut prompts are always in front of decodes."""
        if self._decodes:
            victim = next(reversed(self._decodes))
        else:
            victim = [request for request in self.prompts if request.status is RUNNING][-1]
            self.prompts.remove(victim)
        self._leave(victim)
        self._unflushed += victim.num_blocks
        self._picked.append(victim)
        victim.status = PREEMPTED
        victim.computed = 0
        victim.target = victim.prompt_length + victim.generated
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.prompts.append(victim)
        batch.preempted.append(victim)

    def _leave(self, request: Request) -> None:
        del self.running[request]
        self._halves.pop(request, None)
        if request in self.decoding:
            self.decoding.leave(request)
            del self._decodes[request]
            request.num_blocks = -(-request.computed // self.block_size)

    # after a pass

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        self.tracked += len(batch.cached)
        for request in ended:
            self._end(request)

    def _end(self, request: Request) -> None:
        self._leave(request)
        request.status = FINISHED
        self._unflushed += request.num_blocks
        self._ended.append(request)

    def cancel(self, request: Request, now: float) -> None:
        if request in self.prompts:
            self.prompts.remove(request)
        if request.status is RUNNING:
            self._end(request)
        request.status = FINISHED

    # many passes at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        return 1 + self.decoding.iterations_within(self.free, limit - 1)

    def advance(self, batch: Batch, n: int) -> None:
        decoding = self.decoding
        self.free -= decoding.blocks_over(n)
        decoding.advance(n)
        for _ in range(min(n, 3)):
            self.flush()
            self._picked, self._queued, self._ended = self._queued, self._ended, []
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        """Without those whose flush is on its way."""
        return self._num_blocks - self.free - self._unflushed

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    def waste(self) -> tuple[float, float, float, float]:
        tokens = self.decoding.computed + sum(request.computed for request in self._halves)
        return 0.0, self.blocks_used * self.block_size - tokens, 0.0, 0.0


SYSTEMS = (
    System(
        name="deepspeed-fastgen",
        version="mii 0.3.3",
        summary="Dynamic SplitFuse: 768 tokens a forward, decodes first, prompts cut to fill them",
        source="deepspeed-mii 0.3.3, mii/batching/ragged_batching.py",
        status="recorded",
        policy="splitfuse:SplitFuse",
        block_size=64,
        memory="fastgen",
        traits="fastgen",
        capacity="num_blocks",
    ),
)
