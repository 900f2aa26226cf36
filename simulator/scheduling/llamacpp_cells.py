"""The cells of llama.cpp's KV cache: one for each token of a sequence.

Partitioned, every slot has a stream of its own and room for its whole context. Unified, all slots take
cells from one pool, and a copied sequence shares the cells of the original until one of the two lets go of
them (src/llama-kv-cache.cpp).
"""

from __future__ import annotations

__all__ = ["Cells"]


class _Stretch:
    """Cells that several slots hold, each a leading part; what nobody holds is free."""

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}

    @property
    def size(self) -> int:
        return max(self.holders.values(), default=0)


class Cells:
    """Which slot holds how many of *num_cells* cells; ``used`` counts shared ones once."""

    def __init__(self, num_cells: int, num_slots: int) -> None:
        self.num_cells = num_cells
        self.used = 0
        self._own = [0] * num_slots
        self._shared: list[list[_Stretch]] = [[] for _ in range(num_slots)]

    @property
    def free(self) -> int:
        """Cells that hold no token."""
        return self.num_cells - self.used

    def held(self, slot: int) -> int:
        """Tokens of *slot* that have a cell."""
        own, shared = self._own[slot], self._shared[slot]
        return own + sum(stretch.holders[slot] for stretch in shared) if shared else own

    def grow(self, slot: int, n: int) -> None:
        """*slot* takes *n* cells."""
        self._own[slot] += n
        self.used += n

    def spread(self, slots: list[int], n: int) -> None:
        """Each of *slots* takes *n* cells."""
        for slot in slots:
            self._own[slot] += n
        self.used += n * len(slots)

    def keep(self, slot: int, n: int) -> None:
        """*slot* keeps its first *n* cells."""
        left = n
        for stretch in self._shared[slot]:
            before, mine = stretch.size, min(stretch.holders.pop(slot), left)
            if mine:
                stretch.holders[slot] = mine
            self.used -= before - stretch.size
            left -= mine
        self._shared[slot] = [stretch for stretch in self._shared[slot] if slot in stretch.holders]
        dropped = max(self._own[slot] - left, 0)
        self._own[slot] -= dropped
        self.used -= dropped

    def discard(self, slot: int, keep: int, n: int) -> None:
        """*slot* drops *n* cells after its first *keep*; what it shares beyond those becomes its own."""
        left = self.held(slot) - n
        self.keep(slot, keep)
        self.grow(slot, left - self.held(slot))

    def share(self, parent: int, child: int) -> None:
        """*child*, which holds nothing, gets the cells of *parent*."""
        if self._own[parent]:
            stretch = _Stretch()
            stretch.holders[parent] = self._own[parent]
            self._shared[parent].append(stretch)
            self._own[parent] = 0
        self._shared[child] = list(self._shared[parent])
        for stretch in self._shared[parent]:
            stretch.holders[child] = stretch.holders[parent]
