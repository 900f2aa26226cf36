"""LMDeploy's TurboMind engine: one pass over all live requests, the oldest first.

The gateway lets requests in while fewer than ``max_batch_size`` are live, whatever their length. Each step
walks over the live ones in the order of their ids and gives every one what it needs, a token or the rest of
its prompt, from a budget of ``max_prefill_token_num + max_batch_size`` tokens, so that prompts and decodes
share a forward. Who finds no block takes them from the latest requests; those start over when their turn
comes. Who still finds none sits this step out, and everybody after it too.

Behaviour as described for lmdeploy's src/turbomind/engine/scheduler.cc; not compared with a recording. Which
blocks an eviction takes is simplified to all of one request. The engine fails the oldest request when it
cannot run even alone; here such a request is refused when it arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.block_sizes import TURBOMIND
from simulator.scheduling.lmdeploy import batch_size_by_device
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "TurboMind"]


class TurboMind(Scheduler):
    """The pass over live requests; keywords are those of ``TurbomindEngineConfig``.

    *num_gpu_blocks* blocks of *block_size* tokens, at most *max_batch_size* live requests, sequences up to
    *session_len* tokens (0: what the blocks hold).
    """

    quiet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        block_size: int = 64,
        max_batch_size: int = 128,
        max_prefill_token_num: int = 8192,
        session_len: int = 0,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_batch_size, block_size=block_size, explicit=explicit)
        for name, value in (
            ("num_gpu_blocks", num_gpu_blocks),
            ("max_prefill_token_num", max_prefill_token_num),
        ):
            if value < 1:
                raise ConfigurationError(f"{name} {value}: must be at least 1")
        self.block_size = block_size
        self.capacity = num_gpu_blocks
        self.num_free = num_gpu_blocks
        self.session_len = min(session_len or num_gpu_blocks * block_size, num_gpu_blocks * block_size)
        self.budget = max_prefill_token_num + max_batch_size
        self.waiting: deque[Request] = deque()
        self._prefilling: dict[Request, None] = {}
        self._last_decoder = -1  # no later request decodes
        self._num_live = 0

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.session_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens leaves no room for output in {self.session_len} tokens"
            )
        request.max_tokens = min(request.max_tokens, room)
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def _let_in(self, batch: Batch) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting.popleft()
            request.status = RUNNING
            request.order = self._num_live
            self._num_live += 1
            self.running[request] = None
            self._prefilling[request] = None

    # one step

    def schedule(self, now: float) -> Batch | Wait | None:
        batch = Batch()
        self._let_in(batch)
        if not self.running:
            return None
        if not self.explicit and self._all_fit():
            self._run_all(batch)
        else:
            self._walk(batch)
        self._join(batch)
        batch.iteration = self.decoding.iteration
        batch.repeatable = bool(batch.num_decodes) and not (
            batch.prefills or batch.preempted or batch.stalled
        )
        return batch

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _all_fit(self) -> bool:
        """Whether all decoding requests get their turn, and all prompts before the last of them theirs."""
        decoding = self.decoding
        need, budget = decoding.blocks_next, self.budget - decoding.count
        if need > self.num_free:
            return False
        if not self._prefilling or next(iter(self._prefilling)).order > self._last_decoder:
            return True
        self._last_decoder = max((request.order for request in decoding.members), default=-1)
        for request in self._prefilling:
            if request.order > self._last_decoder:
                break
            left = request.target - request.computed
            need += self._blocks(request.computed + left) - request.num_blocks
            budget -= left
        return need <= self.num_free and budget >= 0

    def _run_all(self, batch: Batch) -> None:
        decoding = self.decoding
        budget = self.budget - decoding.count
        if decoding.count:
            self.num_free -= decoding.blocks_next
            decoding.advance()
            batch.num_decodes = decoding.count
            batch.decode_context = decoding.computed
        line = list(self._prefilling)
        for i, request in enumerate(line):
            chunk = min(request.target - request.computed, budget)
            need = self._blocks(request.computed + chunk) - request.num_blocks
            if not chunk or not self._make_room(batch, need, line[i + 1 :]):
                break
            self._compute(batch, request, chunk)
            budget -= chunk

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        if not request.computed:
            batch.cached[request] = 0
        blocks = self._blocks(request.computed + chunk)
        self.num_free -= blocks - request.num_blocks
        request.num_blocks = blocks
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk

    def _walk(self, batch: Batch) -> None:
        """Everybody in the order of ids, until the budget is spent or somebody finds no block."""
        decoding, budget = self.decoding, self.budget
        decodes: dict[Request, None] = {}
        line = list(self.running)
        for i, request in enumerate(line):
            decodes_now = request in decoding
            tokens = decoding.tokens(request) if decodes_now else request.computed
            chunk = min(1 if decodes_now else request.target - tokens, budget)
            need = self._blocks(tokens + chunk) - self._held(request)
            if not chunk or not self._make_room(batch, need, line[i + 1 :]):
                break
            if decodes_now:
                self.num_free -= need
                decodes[request] = None
            else:
                self._compute(batch, request, chunk)
            budget -= chunk
        self._take_turns(batch, decodes)

    def _held(self, request: Request) -> int:
        return self._blocks(self.decoding.tokens(request)) if request in self.decoding else request.num_blocks

    def _make_room(self, batch: Batch, need: int, later: list[Request]) -> bool:
        """Whether *need* blocks are free, if need be at the cost of *later* requests, the latest first."""
        for victim in reversed(later):
            if need <= self.num_free:
                return True
            if self._held(victim):
                self._evict(batch, victim)
        return need <= self.num_free

    def _evict(self, batch: Batch, victim: Request) -> None:
        self._free(victim)
        victim.computed = 0
        victim.target = victim.prompt_length + victim.generated
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._prefilling[victim] = None
        self._prefilling = dict.fromkeys(sorted(self._prefilling, key=lambda request: request.order))
        batch.preempted.append(victim)

    def _take_turns(self, batch: Batch, decodes: dict[Request, None]) -> None:
        decoding = self.decoding
        if self.explicit:
            batch.decodes = list(decodes)
        if not decodes:
            return
        decoding.advance()
        batch.stalled = [request for request in decoding.members if request not in decodes]
        for request in batch.stalled:
            decoding.stall(request)
        batch.num_decodes = len(decodes)
        batch.decode_context = sum(decoding.tokens(request) for request in decodes)

    def _join(self, batch: Batch) -> None:
        for request, _, _ in batch.prefills:
            if request.computed == request.target:
                del self._prefilling[request]
                request.generated += 1
                self.decoding.join(request)
                self._last_decoder = max(self._last_decoder, request.order)
                batch.joining.append(request)

    # ends

    def _free(self, request: Request) -> None:
        self.num_free += self._held(request)
        request.num_blocks = 0
        if request in self.decoding:
            self.decoding.leave(request)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self.cancel(request, now)

    def cancel(self, request: Request, now: float) -> None:
        if request in self.running:
            self._free(request)
            del self.running[request]
            self._prefilling.pop(request, None)
        else:
            self.waiting.remove(request)
        request.status = FINISHED

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        free_seat = self.waiting and len(self.running) < self.max_num_seqs
        if not batch.repeatable or limit <= 1 or self.explicit or free_seat:
            return 1
        return 1 + self.decoding.iterations_within(self.num_free, limit - 1)

    def advance(self, batch: Batch, n: int) -> None:
        self.num_free -= self.decoding.blocks_over(n)
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.capacity - self.num_free

    @property
    def num_blocks(self) -> int:
        return self.capacity

    def waste(self) -> tuple[float, float, float, float]:
        tokens = self.decoding.computed + sum(request.computed for request in self._prefilling)
        return 0.0, float(self.blocks_used * self.block_size - tokens), 0.0, 0.0


SYSTEMS = (
    System(
        name="lmdeploy-turbomind",
        block_sizes=TURBOMIND,
        version="1263d5cd (2026-08-21)",
        summary="TurboMind: all live in order of arrival, prompts and decodes in one forward, later ones make room",
        source="LMDeploy 1263d5cd, src/turbomind/engine/scheduler.cc, as described",
        status="inferred",
        policy="turbomind:TurboMind",
        defaults=batch_size_by_device,
        block_size=64,
        memory="lmdeploy",
        traits="lmdeploy",
    ),
)
