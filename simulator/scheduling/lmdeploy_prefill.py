"""Which waiting sequences LMDeploy's PyTorch engine admits, and in which order.

Normally by arrival, up to the first that does not fit. A prompt longer than ``max_prefill_token_num``
changes that: it is computed in chunks, alone in its forward, and the engine gives the others three *short*
turns for each chunk. In a short turn the others come by length, and who does not fit is passed over; in a
*long* turn the long prompt with the fewest chunks comes first, a chunk less for every two seconds it has
waited.

Room is made by taking the blocks of sequences that have stopped or wait, the newest first; a sequence that
lost its blocks starts over. Read in LMDeploy 0.18.0 (pytorch/paging/prefill_scheduler.py, eviction_helper).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from simulator.scheduling.lmdeploy_memory import TrieMemory
from simulator.scheduling.request import Request
from simulator.scheduling.token_runs import Tokens

__all__ = ["LONG", "SHORT", "STANDARD", "Line", "Notes"]

STANDARD = "standard"
SHORT = "short"
LONG = "long"
ADMIT, SKIP, STOP = "admit", "skip", "stop"
AGING_S = 2.0
"""Seconds of waiting that count as one chunk less."""


class Notes:
    """What the policy keeps about a request, as its ``state``."""

    __slots__ = ("arrived", "full_at", "name", "number", "prompt", "skip_at")

    def __init__(self, arrived: float, number: int, name: Hashable, prompt: Tokens | None) -> None:
        self.arrived = arrived
        self.number = number
        """Its place among all requests."""
        self.name = name
        """What the tokens of its output are called."""
        self.prompt = prompt
        """The prompt's tokens, where prefixes are cached."""
        self.full_at = 0
        """The count of decode iterations at which the blocks it joined with are full."""
        self.skip_at = -1
        """The one at which its phase says so too early."""


def sequence_of(request: Request, known: int | None = None) -> Tokens:
    """The *known* tokens of *request*, all those to compute by default."""
    tokens: Tokens = request.state.prompt.part(0, request.prompt_length)
    tokens.append(request.state.name, 1, 0, (known or request.target) - request.prompt_length)
    return tokens


@dataclass
class Decision:
    """What one decision did beside its batch."""

    now: float
    evicted: list[Request]
    """Stopped or waiting sequences that lost their blocks."""
    trie_evicted: int = 0


class Line:
    """Waiting sequences, and the attempt to admit some of them."""

    def __init__(self, memory: TrieMemory, max_prefill_token_num: int, prealloc: int) -> None:
        self.memory = memory
        self.max_prefill = max_prefill_token_num
        self.prealloc = prealloc
        self.order: list[tuple[float, int, Request]] = []
        """By arrival."""
        self.tokens = 0
        """Tokens that the waiting have to compute."""
        self.num_long = 0
        self.holders: dict[Request, None] = {}
        """Waiting sequences that have blocks, in the order in which they came to wait."""
        self.stopped: dict[Request, None] = {}
        """Ended ones whose blocks nobody has returned yet."""

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, request: Request) -> bool:
        return self._entry(request) in self.order

    def left(self, request: Request) -> int:
        """Tokens that *request* has to compute."""
        return request.target - request.computed

    def add(self, request: Request) -> None:
        """*request* waits from now on."""
        entry = self._entry(request)
        if not self.order or self.order[-1] < entry:
            self.order.append(entry)
        else:
            insort(self.order, entry)
        self._count(request, 1)
        if request.num_blocks:
            self.holders[request] = None

    def remove(self, request: Request) -> None:
        """*request* waits no more."""
        self.order.remove(self._entry(request))
        self._count(request, -1)
        self.holders.pop(request, None)

    def _entry(self, request: Request) -> tuple[float, int, Request]:
        return (request.state.arrived, request.state.number, request)

    def _count(self, request: Request, sign: int) -> None:
        left = self.left(request)
        self.tokens += sign * left
        if left > self.max_prefill:
            self.num_long += sign

    # room

    def drop(self, request: Request, now: float) -> None:
        """A waiting or stopped *request* loses its blocks and its progress."""
        if request in self.stopped:
            self.memory.release(request, now)
            return
        self._count(request, -1)
        self.memory.release(request, now)
        request.computed = 0
        self.holders.pop(request, None)
        self._count(request, 1)

    def make_room(self, need: int, candidates: Iterable[Request], decision: Decision) -> bool:
        """Whether *need* blocks are free, if need be without those of *candidates* and of the trie."""
        memory = self.memory
        if need <= memory.num_free:
            return True
        for request in candidates:
            self.drop(request, decision.now)
            decision.evicted.append(request)
            decision.trie_evicted += memory.evict(need - memory.num_free)
            if need <= memory.num_free:
                return True
        decision.trie_evicted += memory.evict(need - memory.num_free)
        return need <= memory.num_free

    def growth_candidates(self) -> list[Request]:
        """Who makes room for a running sequence."""
        return [*self._stopped_holders(), *self.holders]

    def _stopped_holders(self) -> list[Request]:
        return [request for request in self.stopped if request.num_blocks]

    # admission

    def admit(self, turn: str, seats: int, decision: Decision) -> list[Request]:
        """The sequences of one prefill; they have their blocks and wait no more."""
        if seats <= 0 or not self.order:
            return []
        waiting = self._in_order(turn, decision.now)
        admitted: list[Request] = []
        skipped: list[Request] = []
        tokens = 0
        for i, request in enumerate(waiting):
            if len(admitted) == seats:
                break
            if waiting is self.order:
                request = request[2]
            rest = (skipped, waiting, i)
            outcome = self._try(request, turn, tokens if admitted else None, rest, decision)
            if outcome is SKIP:
                skipped.append(request)
            elif outcome is STOP:
                break
            else:
                admitted.append(request)
                left = self.left(request)
                tokens += min(left, self.max_prefill)
                if left > self.max_prefill:
                    break
        self._leave(admitted)
        return admitted

    def _leave(self, admitted: list[Request]) -> None:
        if not admitted:
            return
        gone = set(admitted)
        last = max(i for i, entry in enumerate(self.order[: self._reach(admitted)]) if entry[2] in gone)
        self.order[: last + 1] = [entry for entry in self.order[: last + 1] if entry[2] not in gone]
        for request in admitted:
            self._count(request, -1)
            self.holders.pop(request, None)

    def _reach(self, admitted: list[Request]) -> int:
        """How far into the line the admitted ones reach."""
        latest = max(self._entry(request)[:2] for request in admitted)
        lo, hi = 0, len(self.order)
        while lo < hi:
            mid = (lo + hi) // 2
            if self.order[mid][:2] <= latest:
                lo = mid + 1
            else:
                hi = mid
        return lo

    def _in_order(self, turn: str, now: float) -> Any:
        """The waiting ones in the order in which this turn tries them."""
        if turn is STANDARD:
            return self.order
        normal: list[Request] = []
        long: list[Request] = []
        for _, _, request in self.order:
            (long if self.left(request) > self.max_prefill else normal).append(request)
        normal.sort(key=self.left)  # stable: of equals, the one that came first
        if turn is SHORT:
            return normal + long
        long.sort(key=lambda request: self._long_key(request, now))
        return long[:1] + normal + long[1:]

    def _long_key(self, request: Request, now: float) -> tuple[int, int, float]:
        chunks = -(-self.left(request) // self.max_prefill)
        age = int(max(now - request.state.arrived, 0.0) // AGING_S)
        return chunks - age, chunks, request.state.arrived

    def _try(
        self,
        request: Request,
        turn: str,
        tokens: int | None,
        rest: tuple[list[Request], Any, int],
        decision: Decision,
    ) -> str:
        """Give *request* its blocks if the turn, the budget and the memory allow; *tokens*: of those before it."""
        rejection = SKIP if turn is SHORT else STOP
        matched, refused = False, STOP
        if turn is SHORT and self.left(request) > self.max_prefill:
            if not self._match(request, decision):
                return SKIP
            matched, refused = True, SKIP
            if self.left(request) > self.max_prefill:
                self._undo(request, decision)
                return SKIP
        if self._exceeds(request, tokens):
            if matched or not self._match(request, decision):
                self._undo(request, decision, only=matched)
                return rejection
            matched, refused = True, rejection
            if self._exceeds(request, tokens):
                self._undo(request, decision)
                return rejection
        if not matched:
            matched = self._match(request, decision)
        if not self._take(request, rest, decision):
            self._undo(request, decision, only=matched)
            return refused
        return ADMIT

    def _exceeds(self, request: Request, tokens: int | None) -> bool:
        if tokens is None:
            return False
        return tokens + min(self.left(request), self.max_prefill) > self.max_prefill

    def _match(self, request: Request, decision: Decision) -> bool:
        """Look *request* up in the trie; False where there is none."""
        if not self.memory.prefix_caching:
            return False
        found = self.memory.match(request, sequence_of(request), decision.now)
        if found:
            self._count(request, -1)
            request.computed = found * self.memory.block_size
            self._count(request, 1)
        return True

    def _undo(self, request: Request, decision: Decision, *, only: bool = True) -> None:
        """Give back what was matched; the release drops what the sequence held before, too."""
        if only and request.num_blocks:
            self.drop(request, decision.now)

    def _take(self, request: Request, rest: tuple[list[Request], Any, int], decision: Decision) -> bool:
        memory = self.memory
        long = self.left(request) > self.max_prefill
        known = request.computed + self.max_prefill if long else request.target
        need = max(memory.blocks_for(known + (0 if long else self.prealloc)) - request.num_blocks, 0)
        if need > memory.num_free and not self.make_room(need, self._candidates(request, rest), decision):
            return False
        memory.take(request, need)
        if memory.prefix_caching:
            memory.register(request, sequence_of(request), known)
        return True

    def _candidates(self, request: Request, rest: tuple[list[Request], Any, int]) -> list[Request]:
        """Who makes room for a waiting one: the stopped, then those tried after it and before it, newest first."""
        found = self._stopped_holders()[::-1]
        if self.holders:
            skipped, waiting, at = rest
            if waiting is self.order:  # everybody up to this one has been admitted
                entry = self._entry(request)
                later = sorted((e for e in map(self._entry, self.holders) if e > entry), reverse=True)
                return found + [other for _, _, other in later]
            line = [*skipped, *waiting[at + 1 :]]
            found += [other for other in line[::-1] if other in self.holders]
        return found
