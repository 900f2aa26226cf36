"""Contiguous KV memory: every sequence gets one piece, large enough for all it may ever hold.

Before paging, keys and values of a sequence had to lie side by side, so a system reserved the longest
answer at the start. A buddy allocator (Knuth, TAOCP vol. 1, 2.5) hands out pieces of power-of-two size and
joins freed neighbours: it is what vLLM's paper gives its Orca baselines (arXiv 2309.06180, section 6.1).
Three kinds of waste follow: space *reserved* for tokens that are not there yet, *internal* space by which a
piece is larger than asked for, and *external* space, free but in pieces too small for the one who waits.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["BuddyMemory"]


class BuddyMemory:
    """*capacity* token slots in pieces of power-of-two size, no smaller than *least*.

    ``used`` is the sum of the pieces handed out, ``reserved`` what was asked for.
    """

    def __init__(self, capacity: int, least: int = 16) -> None:
        if capacity < least:
            raise ConfigurationError(f"KV capacity {capacity} tokens: must be at least {least}")
        self.capacity = capacity
        self.least = least
        self.used = 0
        self.reserved = 0
        self._free: dict[int, set[int]] = {}
        self._held: dict[Request, tuple[int, int, int]] = {}  # (start, size, asked)
        self._fill(capacity)

    def _fill(self, capacity: int) -> None:
        """Free pieces that tile the memory, largest first: a capacity need not be a power of two."""
        start = 0
        while capacity - start >= self.least:
            size = 1 << ((capacity - start).bit_length() - 1)
            self._free.setdefault(size, set()).add(start)
            start += size
        self.capacity = start

    def size(self, tokens: int) -> int:
        """The piece that *tokens* slots take."""
        return max(self.least, 1 << (tokens - 1).bit_length())

    def fits_ever(self, tokens: int) -> bool:
        """Whether the empty memory has such a piece."""
        return self.size(tokens) <= 1 << (self.capacity.bit_length() - 1)

    def fits(self, tokens: int) -> bool:
        """Whether there is a free piece for *tokens* slots now."""
        size = self.size(tokens)
        return any(free and piece >= size for piece, free in self._free.items())

    def take(self, request: Request, tokens: int) -> None:
        """Reserve a piece of *tokens* slots for *request*, halving a larger one if need be."""
        size = self.size(tokens)
        piece = min((p for p, free in self._free.items() if free and p >= size), default=0)
        if not piece:
            raise ConfigurationError(f"no free piece of {size} tokens in a KV memory of {self.capacity}")
        start = min(self._free[piece])
        self._free[piece].remove(start)
        while piece > size:
            piece //= 2
            self._free.setdefault(piece, set()).add(start + piece)
        self._held[request] = (start, size, tokens)
        self.used += size
        self.reserved += tokens

    def free(self, request: Request) -> None:
        """Return the piece of *request*; free neighbours of one size join."""
        start, size, tokens = self._held.pop(request)
        self.used -= size
        self.reserved -= tokens
        while True:
            buddies = self._free.setdefault(size, set())
            buddy = start ^ size
            if buddy not in buddies:
                break
            buddies.remove(buddy)
            start, size = min(start, buddy), 2 * size
        buddies.add(start)
