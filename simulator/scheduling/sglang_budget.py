"""How many tokens a prefill batch of SGLang may take, and what running requests are expected to need still.

Admission bets on the future: of every running request it reserves the tokens that its ``max_new_tokens``
leaves, clipped to 4096, times a ratio that falls with every decode step and jumps when memory ran out after
all (managers/schedule_policy.py: `PrefillAdder`; mem_cache/prefill_budget.py; SGLang 0.5.23).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from simulator.scheduling.request import Request
from simulator.scheduling.sglang_pool import TokenPool

__all__ = ["CLIP_MAX_NEW_TOKENS", "NewTokenRatio", "OutputReserve", "PrefillBudget"]

CLIP_MAX_NEW_TOKENS = 4096
INIT_NEW_TOKEN_RATIO = 0.7
MIN_NEW_TOKEN_RATIO_FACTOR = 0.14
NEW_TOKEN_RATIO_DECAY_STEPS = 600
RETRACT_DECODE_STEPS = 20


class NewTokenRatio:
    """The share of their remaining ``max_new_tokens`` that running requests are expected to generate.

    The first value is 0.7 times *conservativeness*, at most 1; it decays to 0.14 of that within 600 decode
    steps.
    """

    def __init__(self, conservativeness: float) -> None:
        self.first = min(INIT_NEW_TOKEN_RATIO * conservativeness, 1.0)
        self.lowest = min(self.first * MIN_NEW_TOKEN_RATIO_FACTOR, 1.0)
        self.decay = (self.first - self.lowest) / NEW_TOKEN_RATIO_DECAY_STEPS
        self.current = self.first

    def step(self, n: int = 1) -> None:
        """*n* decode steps have passed; subtracted one by one, for the same rounding as one by one."""
        while n and self.current > self.lowest:
            self.current = max(self.current - self.decay, self.lowest)
            n -= 1

    def reset(self) -> None:
        """The server fell idle."""
        self.current = self.first

    def retracted(self, outputs: int, max_new_tokens: int, kept: int) -> None:
        """Memory ran out: estimate anew from the *kept* requests' *outputs* and their sum of
        *max_new_tokens*.
        """
        self.current = min(1.0, (outputs + RETRACT_DECODE_STEPS * kept) / (max_new_tokens + 1))


class _Group:
    """Sum over requests of the tokens that `max_tokens` leaves, each clipped, on the decode counter.

    A request's ``state`` is the iteration at which its last token is scheduled.
    """

    def __init__(self) -> None:
        self.count = 0
        self.ends = 0
        self.clipped: dict[Request, None] = {}
        self._heap: list[tuple[int, int, Request]] = []

    def join(self, request: Request, iteration: int) -> None:
        if request.state - iteration < CLIP_MAX_NEW_TOKENS:
            self.count += 1
            self.ends += request.state
        else:
            self.clipped[request] = None
            heapq.heappush(self._heap, (request.state, id(request), request))

    def leave(self, request: Request) -> None:
        if request in self.clipped:
            del self.clipped[request]
        else:
            self.count -= 1
            self.ends -= request.state

    def unclip(self, iteration: int) -> None:
        while self._heap and self._heap[0][0] - iteration < CLIP_MAX_NEW_TOKENS:
            end, _, request = heapq.heappop(self._heap)
            if request in self.clipped and request.state == end:
                del self.clipped[request]
                self.join(request, iteration)

    def total(self, iteration: int) -> int:
        return self.ends - self.count * iteration + CLIP_MAX_NEW_TOKENS * len(self.clipped)


class OutputReserve:
    """The tokens that running requests may still generate, kept as two sums: with ``ignore_eos`` all of them
    count.
    """

    def __init__(self) -> None:
        self._free, self._fixed = _Group(), _Group()

    def _group(self, request: Request) -> _Group:
        return self._fixed if request.ignore_eos else self._free

    def join(self, request: Request, iteration: int) -> None:
        """*request* decodes from now on; its ``state`` is the iteration of its last token by length."""
        self._group(request).join(request, iteration)

    def leave(self, request: Request) -> None:
        """*request* stops decoding."""
        self._group(request).leave(request)

    def estimate(self, iteration: int, ratio: float, in_flight: Iterable[Request] | None) -> float | None:
        """Tokens to reserve where one token each of *in_flight* (None: of all) is not known yet.

        None where the sum is too near an integer to say how the requests' own roundings add up: see `exact`.
        """
        sums = []
        for group in (self._free, self._fixed):
            group.unclip(iteration)
            total = group.total(iteration)
            if in_flight is None:
                total += group.count
            else:
                total += sum(1 for r in in_flight if self._group(r) is group and r not in group.clipped)
            sums.append(total)
        expected = ratio * sums[0]
        if sums[0] and ratio < 1.0 and abs(expected - round(expected)) < 1e-6:
            return None
        return expected + sums[1]

    @staticmethod
    def exact(requests: Iterable[tuple[Request, int]], ratio: float) -> float:
        """The same sum in the order of *requests*, each with the outputs known of it."""
        return sum(
            min(r.max_tokens - outputs, CLIP_MAX_NEW_TOKENS) * (1.0 if r.ignore_eos else ratio)
            for r, outputs in requests
        )


class PrefillBudget:
    """What one prefill batch may still take: tokens of KV now and in future, of input, and of the chunk.

    *mixed* decodes share the batch, *reserve* tokens are expected by running requests.
    """

    def __init__(
        self, pool: TokenPool, reserve: float, *, mixed: int, max_prefill_tokens: int, chunk: int | None
    ) -> None:
        self._pool = pool
        self._total = mixed + reserve
        self._current = mixed
        self.input = max_prefill_tokens - mixed
        self.chunk = None if chunk is None else chunk - mixed

    @property
    def total(self) -> float:
        """Tokens of KV left once everybody has generated what is expected."""
        return self._pool.available - self._total

    @property
    def current(self) -> int:
        """Tokens of KV left now."""
        return self._pool.available - self._current

    @property
    def full(self) -> bool:
        """Whether memory is used up."""
        available = self._pool.available
        return available <= self._total or available <= self._current

    @property
    def exhausted(self) -> bool:
        """Whether the tokens of input or of the chunk are used up."""
        return self.input <= 0 or (self.chunk is not None and self.chunk <= 0)

    def charge(self, tokens: int, outputs: int) -> None:
        """A request computes *tokens* in this batch and may generate *outputs*."""
        tokens = self._pool.ceil(tokens)
        now = tokens + self._pool.page_size
        self._total += now + outputs
        self._current += now
        self.input -= tokens
        if self.chunk is not None:
            self.chunk -= tokens
