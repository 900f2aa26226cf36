"""LMDeploy's PyTorch engine: prefills and decodes take turns, one forward ahead.

A forward is a prefill of whole prompts, one chunk of a long prompt, or a decode of everything that runs.
While nobody waits the engine decodes. Else it prefills when less than half of ``max_batch_size`` runs, when
the waiting have ``max_prefill_token_num`` tokens to compute, or after ``prefill_interval`` decodes; a
prefill that admits nobody becomes a decode.

The next forward is decided before the tokens of the last are known. So a sequence is known to have ended
one forward late, its blocks return one forward after that, and one that is preempted loses the token in
flight. Blocks are taken ``prefill_interval`` tokens ahead; sequences that need some ask from the newest to
the oldest, and who gets none waits again, still with its blocks.

Read in LMDeploy 0.18.0 (pytorch/engine/inputs_maker.py, engine_loop.py, paging/scheduler.py), whose
recorded decisions are reproduced. `lmdeploy_prefill` has the admission, `lmdeploy_memory` the blocks and
the prefix trie.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.block_sizes import LMDEPLOY_PYTORCH
from simulator.scheduling.lmdeploy_memory import TrieMemory
from simulator.scheduling.lmdeploy_prefill import LONG, SHORT, STANDARD, Decision, Line, Notes, sequence_of
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request
from simulator.scheduling.system import Device, System
from simulator.scheduling.token_runs import Tokens

__all__ = ["SYSTEMS", "Lmdeploy", "batch_size_by_device"]

SHORT_TURNS = 3
"""Short prefills for each chunk of a long prompt."""
DECODE, PREFILL, CHUNK, LAST_CHUNK = "decode", "prefill", "long_context_chunk", "last_long_context_chunk"


class Lmdeploy(Scheduler):
    """The engine's loop; keywords are those of ``PytorchEngineConfig``.

    *max_batch_size* sequences run at a time; *num_gpu_blocks* usable blocks of *block_size* tokens; a
    prefill has at most *max_prefill_token_num* tokens, or one prompt; sequences end at *session_len*
    tokens.
    """

    discards_in_flight: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        block_size: int = 64,
        max_batch_size: int = 128,
        max_prefill_token_num: int = 8192,
        prefill_interval: int = 16,
        session_len: int = 0,
        enable_prefix_caching: bool = False,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_batch_size, block_size=block_size, explicit=explicit)
        self.depth = 2
        for name, value in (
            ("max_prefill_token_num", max_prefill_token_num),
            ("prefill_interval", prefill_interval),
        ):
            if value < 1:
                raise ConfigurationError(f"{name} {value}: must be at least 1")
        self.memory = TrieMemory(num_gpu_blocks, block_size, prefix_caching=enable_prefix_caching)
        self.capacity = num_gpu_blocks * block_size - prefill_interval
        self.session_len = min(session_len or self.capacity, self.capacity)
        self.max_prefill = max_prefill_token_num
        self.interval = prefill_interval
        self.line = Line(self.memory, max_prefill_token_num, prefill_interval)
        self._kinds: deque[str | None] = deque()  # of the forwards in flight
        self._fresh: list[Request] = []  # who joined with the forward that was decided last
        self._decisions = 0  # decodes counted since the last prefill
        self._short_turns = 0
        self._long: Request | None = None  # a long prompt between its chunks
        self._last: str | None = None  # the latest forward
        self._tried = False  # whether the latest decision wanted a prefill, if in vain
        self._num_requests = 0
        # Blocks that a sequence joins with are full at a known decode iteration, and from then on it needs one every
        # `block_size` iterations. All that is due up to iteration `_grown` has been taken.
        self._grown = -1
        self._skips: dict[int, int] = {}
        self._counts = block_size > prefill_interval > 1  # else one is looked at after the other

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.session_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens leaves no room for output in {self.session_len} tokens"
            )
        request.max_tokens = min(request.max_tokens, room)
        self._num_requests += 1
        name = request.output_id if request.output_id is not None else (self._num_requests, "output")
        prompt = Tokens.of_prompt(request, (self._num_requests,)) if self.memory.prefix_caching else None
        request.state = Notes(now, self._num_requests, name, prompt)
        self.line.add(request)

    @property
    def num_waiting(self) -> int:
        return len(self.line)

    # what to do next

    def schedule(self, now: float) -> Batch | Wait | None:
        if not self.running and not self.line:
            return None
        batch = Batch()
        decision = Decision(now, [])
        if self.explicit:
            batch.notes = {"decision": decision}
        kind = self._choose(batch, decision)
        if kind is None and not batch.preempted:
            return None
        if kind is not None:
            self._last = kind
        self._kinds.append(kind)
        self._fresh = batch.joining
        batch.iteration = self.decoding.iteration
        if batch.notes is not None:
            batch.notes["kind"] = kind or "none"
        return batch

    def _choose(self, batch: Batch, decision: Decision) -> str | None:
        """Fill *batch*; returns what kind of forward it is. None: there is nothing to compute."""
        self._tried = prefill = self._wants_prefill()
        kind: str | None = None
        deferred = blocked = tried_long = tried_short = False
        if self._long is not None:
            deferred = self._defers_chunk(prefill)
            if not deferred:
                if self._short_turn_first():
                    tried_short = True
                    kind = self._try_short(batch, decision)
                if kind is None:
                    kind = self._try_chunk(batch, decision)
                    tried_long, blocked = True, kind is None
        elif prefill:
            tried_long = self.line.num_long > 0
            if tried_long and not self._long_turn_is_due():
                tried_short = True
                kind = self._try_short(batch, decision)
            if kind is None:
                kind = self._prefill(batch, LONG if tried_long else STANDARD, decision)
        if kind is None and tried_long and not blocked and not tried_short and self.line:
            kind = self._try_short(batch, decision)
        if kind is None and self.decoding.count:
            kind = self._decode(batch, decision)
        if kind is None and deferred and not self._long_turn_is_due() and self.line:
            kind = self._try_short(batch, decision)
        if kind is None and deferred:
            kind = self._try_chunk(batch, decision)
        if kind is not None and kind is not DECODE:
            self._decisions = 0
        return kind

    def _wants_prefill(self) -> bool:
        last_chunk = self._long is not None and self._is_last_chunk(self._long)
        if not self.line and not last_chunk:
            self._decisions = 0
            return False
        if last_chunk or self._decisions >= self.interval or self.line.tokens >= self.max_prefill:
            return True
        if len(self.running) < self.max_num_seqs * 0.5:
            return True
        self._decisions += 1
        return False

    def _is_last_chunk(self, request: Request) -> bool:
        return self.line.left(request) <= self.max_prefill

    def _long_turn_is_due(self) -> bool:
        return self._short_turns >= SHORT_TURNS

    def _defers_chunk(self, prefill: bool) -> bool:
        assert self._long is not None
        if self._is_last_chunk(self._long):
            return self.decoding.count > 0 and not prefill
        return self._last is CHUNK

    def _short_turn_first(self) -> bool:
        assert self._long is not None
        return not self._is_last_chunk(self._long) and bool(self.line) and not self._long_turn_is_due()

    # prefills

    def _try_short(self, batch: Batch, decision: Decision) -> str | None:
        kind = self._prefill(batch, SHORT, decision)
        if kind is not None:
            self._short_turns += 1
        return kind

    def _prefill(self, batch: Batch, turn: str, decision: Decision) -> str | None:
        admitted = self.line.admit(turn, self.max_num_seqs - len(self.running), decision)
        for request in admitted:
            request.status = RUNNING
            request.cached_tokens = batch.cached[request] = request.computed
            self.running[request] = None
        if len(admitted) == 1 and not self._is_last_chunk(admitted[0]):
            self._long = admitted[0]
            self._compute(batch, admitted[0], self.max_prefill)
            self._short_turns = 0
            return CHUNK
        for request in admitted:
            self._compute(batch, request, self.line.left(request))
            self._join(batch, request)
        return PREFILL if admitted else None

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk

    def _join(self, batch: Batch, request: Request) -> None:
        request.generated += 1
        decoding = self.decoding
        decoding.join(request)
        notes: Notes = request.state
        notes.full_at = decoding.iteration + request.num_blocks * self.memory.block_size - request.computed
        notes.skip_at = notes.full_at - self.memory.block_size
        if self._counts and notes.skip_at > self._grown and notes.skip_at >= decoding.iteration:
            self._skips[notes.skip_at] = self._skips.get(notes.skip_at, 0) + 1
        else:
            notes.skip_at = -1
        batch.joining.append(request)

    def _try_chunk(self, batch: Batch, decision: Decision) -> str | None:
        """The next chunk of the long prompt, if there are blocks for it."""
        request, memory = self._long, self.memory
        assert request is not None
        last = self._is_last_chunk(request)
        chunk = self.line.left(request) if last else self.max_prefill
        known = request.computed + chunk
        need = max(memory.blocks_for(known + (self.interval if last else 0)) - request.num_blocks, 0)
        if not self.line.make_room(need, self.line.growth_candidates(), decision):
            return None
        memory.take(request, need)
        if memory.prefix_caching:
            memory.register(request, sequence_of(request), known)
        self._compute(batch, request, chunk)
        self._short_turns = 0
        if not last:
            return CHUNK
        self._long = None
        self._join(batch, request)
        return LAST_CHUNK

    # decodes

    def _lag(self) -> int:
        """1 where the decoding sequences know a token that no forward in flight computes."""
        return 0 if self._kinds and self._kinds[-1] is DECODE else 1

    def _decode(self, batch: Batch, decision: Decision) -> str | None:
        decoding, lag = self.decoding, self._lag()
        target = decoding.iteration + lag
        if self._counts and not self.explicit:
            need = self._growth(target)
            one_by_one = need > self.memory.num_free or (need and self.memory.prefix_caching)
            if not one_by_one:
                self.memory.num_free -= need
        else:
            one_by_one = True
        if one_by_one:
            self._grow_in_order(batch, target, lag, decision)
        self._forget_skips(target)
        if not decoding.count:
            return None
        decoding.advance()
        batch.num_decodes = decoding.count
        batch.decode_context = decoding.computed
        if self.explicit:
            batch.decodes = list(decoding.members)
        batch.repeatable = not (batch.preempted or one_by_one or self.line.stopped or self._long)
        return DECODE

    def _growth(self, target: int) -> int:
        """Blocks that the decoding sequences need for the iterations after `_grown` up to *target*."""
        block_size, phases = self.memory.block_size, self.decoding.phases
        cycles, rest = divmod(max(target - self._grown, 0), block_size)
        need = cycles * self.decoding.count
        for t in range(self._grown + 1, self._grown + 1 + rest):
            need += phases[t % block_size]
        return need - sum(n for t, n in self._skips.items() if t <= target)

    def _forget_skips(self, target: int) -> None:
        if target > self._grown:
            self._grown = target
            for t in [t for t in self._skips if t <= target]:
                del self._skips[t]

    def _blocks(self, request: Request) -> int:
        """Blocks that a decoding *request* has."""
        full_at: int = request.state.full_at
        if self._counts and self._grown >= full_at:
            return request.num_blocks + (self._grown - full_at) // self.memory.block_size + 1
        return request.num_blocks

    def _grow_in_order(self, batch: Batch, target: int, lag: int, decision: Decision) -> None:
        """From the newest sequence to the oldest: who needs blocks takes them or waits again."""
        decoding, memory = self.decoding, self.memory
        due = {t % memory.block_size for t in range(self._grown + 1, target + 1)}
        if self._counts and not any(decoding.phases[phase] for phase in due):
            return
        for request in reversed(list(decoding.members)):
            if self._counts and request.phase not in due:
                continue
            behind = 0 if request in self._fresh else lag
            known, held = decoding.tokens(request) + behind, self._blocks(request)
            if known + 1 <= held * memory.block_size:
                continue
            need = memory.blocks_for(known + self.interval) - held
            if not self.line.make_room(need, self.line.growth_candidates(), decision):
                self._preempt(batch, request, behind)
                continue
            memory.num_free -= need
            if not self._counts:
                request.num_blocks += need
            if memory.prefix_caching:
                memory.register(request, sequence_of(request, known), known)

    def _preempt(self, batch: Batch, request: Request, lag: int) -> None:
        """*request* waits again, with its blocks but without its token in flight."""
        self._stop_decoding(request)
        if not lag:
            request.generated -= 1
            request.computed -= 1
        request.target = request.prompt_length + request.generated
        request.status = PREEMPTED
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.line.add(request)
        batch.preempted.append(request)

    def _stop_decoding(self, request: Request) -> None:
        request.num_blocks = self._blocks(request)
        skip_at = request.state.skip_at
        if skip_at > self._grown:
            self._skips[skip_at] -= 1
        self.decoding.leave(request)
        del self.running[request]

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        self._kinds.popleft()
        self._return_blocks(now)
        for request in ended:
            if request.status is RUNNING:
                self._stop_decoding(request)
                self.line.stopped[request] = None
            else:
                self._forget(request, now)
            request.status = FINISHED
        if not self._kinds and not self.running and not self.line:
            self._return_blocks(now)

    def _return_blocks(self, now: float) -> None:
        """The clients of the stopped sequences have ended their sessions."""
        for request in self.line.stopped:
            self.memory.release(request, now)
        self.line.stopped.clear()

    def _forget(self, request: Request, now: float) -> None:
        self.line.remove(request)
        self.memory.release(request, now)

    def cancel(self, request: Request, now: float) -> None:
        if request.status is not RUNNING:
            self._forget(request, now)
        else:
            if request is self._long:
                self._long = None
                del self.running[request]
            else:
                self._stop_decoding(request)
            self.memory.release(request, now)
        request.status = FINISHED
        if not self.running and not self.line:
            self._return_blocks(now)

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or not self._counts or self.line.stopped:
            return 1
        limit -= 1
        if self.line:
            if not self._tries_to_prefill():
                limit = min(limit, self.interval - self._decisions)
            elif self.memory.prefix_caching or not self._tried:
                return 1  # the next attempt may succeed, or touches what it finds
        if self.memory.prefix_caching:
            return 1 + self._until_growth(limit)
        return 1 + self.decoding.iterations_within(self.memory.num_free, limit)

    def _tries_to_prefill(self) -> bool:
        """Whether the next decision tries a prefill first."""
        few = len(self.running) < self.max_num_seqs * 0.5
        return few or self._decisions >= self.interval or self.line.tokens >= self.max_prefill

    def _until_growth(self, limit: int) -> int:
        """Iterations, at most *limit*, in which no sequence needs a block."""
        n = 0
        while n < limit and not self._growth(self.decoding.iteration + n):
            n += 1
        return n

    def advance(self, batch: Batch, n: int) -> None:
        decoding = self.decoding
        target = decoding.iteration + n - 1
        self.memory.num_free -= self._growth(target)
        self._forget_skips(target)
        decoding.advance(n)
        if self.line and not self._tries_to_prefill():
            self._decisions += n
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.memory.num_blocks - self.memory.num_free - self.memory.num_cached

    @property
    def num_blocks(self) -> int:
        return self.memory.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.memory.num_cached

    def waste(self) -> tuple[float, float, float, float]:
        block_size = self.memory.block_size
        shared = self.memory.num_shared * block_size
        tokens = self.decoding.computed + (self._long.computed if self._long is not None else 0)
        return 0.0, self.blocks_used * block_size + shared - tokens, 0.0, shared


def batch_size_by_device(device: Device) -> dict[str, int]:
    """The engines' batch size by device (lmdeploy/utils.py, get_max_batch_size)."""
    sizes = {"a100": 384, "a800": 384, "h100": 1024, "h800": 1024, "h200": 1024}
    return {"max_batch_size": next((n for name, n in sizes.items() if name in device.name), 128)}


SYSTEMS = (
    System(
        name="lmdeploy",
        block_sizes=LMDEPLOY_PYTORCH,
        version="0.18.0",
        summary="PyTorch engine: prefill and decode take turns, one forward ahead, long prompts in chunks",
        source="LMDeploy 0.18.0, pytorch/engine/inputs_maker.py, pytorch/paging",
        status="recorded",
        policy="lmdeploy:Lmdeploy",
        defaults=batch_size_by_device,
        block_size=64,
        memory="lmdeploy",
        traits="lmdeploy",
    ),
)
