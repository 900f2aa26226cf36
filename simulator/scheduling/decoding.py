"""The decoding sequences of a batch, on one counter.

Between two decisions every decoding sequence does the same thing: one token an iteration. So the
set keeps a single counter, and what a sequence has is a constant added to it. A sequence that joins
with ``C`` computed tokens at iteration ``k`` has ``C + (i - k)`` at iteration ``i``; the sum over the set grows
by its size; and how many sequences step into a new KV block at an iteration depends only on their
phase modulo the block size, so one count per residue class answers it. Joining, leaving and advancing
by any number of iterations cost the same whatever the size of the set.
"""

from __future__ import annotations

from simulator.compiled.attributes import mypyc_attr
from simulator.scheduling.request import Request

__all__ = ["DecodeSet"]


@mypyc_attr(allow_interpreted_subclasses=True)
class DecodeSet:
    """Sequences that each compute one token per iteration.

    *block_size* is in tokens. ``iteration`` counts decode iterations scheduled so far, ``computed`` is the
    sum over the set of computed tokens (positions whose KV exists once the scheduled batches have run).
    """

    __slots__ = ("block_size", "computed", "count", "iteration", "members", "phases")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.iteration = 0
        self.computed = 0
        self.count = 0
        """Number of members."""
        self.members: dict[Request, None] = {}
        self.phases = [0] * block_size
        """Members by the residue class of the iterations at which they step into a new block."""

    def __len__(self) -> int:
        return self.count

    def __contains__(self, request: Request) -> bool:
        return request.phase >= 0

    def join(self, request: Request) -> None:
        """*request* has computed ``request.computed`` tokens and takes part from the next iteration on."""
        request.base = base = request.computed - self.iteration
        request.phase = phase = -base % self.block_size
        self.phases[phase] += 1
        self.computed += request.computed
        self.members[request] = None
        self.count += 1

    def leave(self, request: Request) -> None:
        """*request* stops; its ``computed`` and ``generated`` become its own again."""
        computed = request.base + self.iteration
        self.phases[request.phase] -= 1
        self.computed -= computed
        request.generated += computed - request.computed
        request.computed = computed
        request.phase = -1
        del self.members[request]
        self.count -= 1

    def tokens(self, request: Request) -> int:
        """Computed tokens of a member."""
        return request.base + self.iteration

    def generated(self, request: Request) -> int:
        """Output tokens of a member, those of scheduled batches included."""
        return request.generated + request.base + self.iteration - request.computed

    def stall(self, request: Request) -> None:
        """*request* missed the iteration just counted by `advance`: it stays one token behind the others."""
        self.phases[request.phase] -= 1
        request.base -= 1
        request.phase = phase = (request.phase + 1) % self.block_size
        self.phases[phase] += 1
        self.computed -= 1

    @property
    def blocks_next(self) -> int:
        """How many members step into a new block at the next iteration."""
        return self.phases[self.iteration % self.block_size]

    def needs_block(self, request: Request) -> bool:
        """Whether *request* steps into a new block at the next iteration."""
        return request.phase == self.iteration % self.block_size

    def advance(self, n: int = 1) -> None:
        """Count *n* iterations in which every member took part."""
        self.iteration += n
        self.computed += n * self.count

    def blocks_over(self, n: int) -> int:
        """New blocks that the members step into over the next *n* iterations."""
        cycles, rest = divmod(n, self.block_size)
        total = cycles * self.count
        first = self.iteration % self.block_size
        for i in range(first, first + rest):
            total += self.phases[i % self.block_size]
        return total

    def iterations_within(self, blocks: int, limit: int) -> int:
        """The most iterations, at most *limit*, whose new blocks number at most *blocks*."""
        count = self.count
        if count * (limit // self.block_size + 1) <= blocks:
            return limit
        cycles = blocks // count
        n = cycles * self.block_size
        left = blocks - cycles * count
        at = self.iteration % self.block_size
        for _ in range(self.block_size):  # one cycle more would need `count` blocks, and fewer are left
            left -= self.phases[at]
            if left < 0:
                break
            n += 1
            at = (at + 1) % self.block_size
        return min(n, limit)
