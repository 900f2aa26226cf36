"""Where a sequence's KV lies: in blocks that the scheduler numbers, or in pages of the engine's own.

A block manager that numbers its blocks (``track_ids``) says where everything lies, prefixes found in its
cache included. Many policies only count: systems that reserve contiguous room or hand out slots have no
blocks to number, and the counted form of sharing and swapping has no numbers either. For those the engine
lays the KV into pages of its own, within what the policy has granted: reference counts and copy-on-write
for forked sequences (vLLM paper, sec. 4.4), host pages for swapped ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.sequence import Sequence
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["Moves", "OwnPages", "Pages", "SchedulerPages"]

Table = NDArray[np.int32]


@dataclass
class Moves:
    """Blocks to move before the next forward pass, in this order: out to the host, back from it, copies."""

    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.swap_out or self.swap_in or self.copies)


class Pages(Protocol):
    """Block tables by sequence."""

    def table(self, sequence: Sequence, start: int, stop: int) -> Table:
        """The blocks of the first *stop* tokens, of which those from *start* on are about to be written."""
        ...

    def kept(self, sequence: Sequence, context: int) -> int:
        """How many of *context* tokens, which the scheduler holds for computed, really have their KV here."""
        ...

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """*child* has all KV that *parent* has."""
        ...

    def swap_out(self, sequence: Sequence) -> None:
        """The sequence's KV goes to the host."""
        ...

    def free(self, sequence: Sequence) -> None:
        """The sequence has no KV any more."""
        ...

    def take_moves(self) -> Moves:
        """What must be moved now; asked for once before each forward pass."""
        ...


class SchedulerPages:
    """The tables of the scheduler's block manager (made with ``track_ids=True``), kept as arrays."""

    def __init__(self, tables: Mapping[Request, list[int]], block_size: int) -> None:
        self.tables, self.block_size = tables, block_size
        self._arrays: dict[Sequence, tuple[list[int], Table]] = {}

    def table(self, sequence: Sequence, start: int, stop: int) -> Table:
        ids = self.tables.get(sequence.request)
        need = -(-stop // self.block_size)
        if ids is None or len(ids) < need:
            raise ConfigurationError(
                f"request {sequence.request.id}: {len(ids or ())} blocks are listed for {stop} tokens; "
                "the engine needs a scheduler made with track_ids=True"
            )
        source, array = self._arrays.get(sequence, (None, EMPTY))
        known = len(array) if source is ids else 0  # after a preemption the list is another one
        if known < len(ids):
            array = np.concatenate((array[:known], np.array(ids[known:], dtype=np.int32)))
            self._arrays[sequence] = ids, array
        return array[:need]

    def kept(self, sequence: Sequence, context: int) -> int:
        return context

    def fork(self, parent: Sequence, child: Sequence) -> None:
        raise ConfigurationError(
            "a scheduler that forks sequences must not number its blocks: track_ids=False"
        )

    def swap_out(self, sequence: Sequence) -> None:
        raise ConfigurationError("a scheduler that swaps must not number its blocks: track_ids=False")

    def free(self, sequence: Sequence) -> None:
        self._arrays.pop(sequence, None)

    def take_moves(self) -> Moves:
        return Moves()


class OwnPages:
    """*num_blocks* device pages and *num_host_blocks* host pages that the engine hands out itself.

    A full page is found again by its content id, also after nobody holds it any more until it is taken for
    something else. So what a policy takes for cached is there, up to the last whole page.
    """

    def __init__(self, num_blocks: int, block_size: int, num_host_blocks: int = 0) -> None:
        self.block_size = block_size
        self._device = _Pool("device", num_blocks)
        self._host = _Pool("host", num_host_blocks)
        self._tables: dict[Sequence, Table] = {}
        self._on_host: dict[Sequence, Table] = {}
        self._tokens: dict[Sequence, int] = {}
        self._moves = Moves()
        self._out: dict[int, int] = {}  # of this step: a shared page moves once
        self._back: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Device pages that nobody holds."""
        return self._device.num_free

    @property
    def num_host_free(self) -> int:
        """Host pages that nobody holds."""
        return self._host.num_free

    def table(self, sequence: Sequence, start: int, stop: int) -> Table:
        if sequence in self._on_host:
            self._swap_in(sequence)
        table = self._tables.get(sequence, EMPTY)
        need = -(-stop // self.block_size)
        if need > len(table):
            new = [self._device.take() for _ in range(need - len(table))]
            table = np.concatenate((table, np.array(new, dtype=np.int32)))
        for index in range(start // self.block_size, need):
            if self._device.references[page := int(table[index])] > 1:
                table = table.copy()  # who shares the page may share the array
                table[index] = copy = self._device.take()
                self._device.drop(page)
                self._moves.copies.append((page, copy))
        for index in range(start // self.block_size, stop // self.block_size):
            self._device.name_page(int(table[index]), sequence.content[index][0])
        self._tables[sequence] = table
        self._tokens[sequence] = max(stop, self._tokens.get(sequence, 0))
        return table[:need]

    def kept(self, sequence: Sequence, context: int) -> int:
        if context and sequence not in self._tables and sequence not in self._on_host:
            self._find(sequence, context)
        return min(context, self._tokens.get(sequence, 0))

    def _find(self, sequence: Sequence, context: int) -> None:
        """Share the pages that hold the leading tokens of *sequence*."""
        found: list[int] = []
        for content_id, _ in sequence.content[: context // self.block_size]:
            page = self._device.page_of.get(content_id)
            if page is None:
                break
            self._device.share(page)
            found.append(page)
        self._tables[sequence] = np.array(found, dtype=np.int32)
        self._tokens[sequence] = len(found) * self.block_size

    def fork(self, parent: Sequence, child: Sequence) -> None:
        table = self._tables[child] = self._tables[parent]
        self._tokens[child] = self._tokens[parent]
        for page in table.tolist():
            self._device.share(page)

    def swap_out(self, sequence: Sequence) -> None:
        pages = self._tables.pop(sequence, EMPTY).tolist()
        self._on_host[sequence] = self._move(pages, self._device, self._host, self._out, self._moves.swap_out)

    def _swap_in(self, sequence: Sequence) -> None:
        pages = self._on_host.pop(sequence).tolist()
        self._tables[sequence] = self._move(pages, self._host, self._device, self._back, self._moves.swap_in)

    @staticmethod
    def _move(
        pages: list[int], source: _Pool, target: _Pool, moved: dict[int, int], pairs: list[tuple[int, int]]
    ) -> Table:
        placed = []
        for page in pages:
            if page in moved:
                target.share(moved[page])
            else:
                moved[page] = target.take()
                pairs.append((page, moved[page]))
            placed.append(moved[page])
            source.drop(page)
        return np.array(placed, dtype=np.int32)

    def free(self, sequence: Sequence) -> None:
        for page in reversed(self._tables.pop(sequence, EMPTY).tolist()):  # the deepest is taken first
            self._device.drop(page)
        for page in self._on_host.pop(sequence, EMPTY).tolist():
            self._host.drop(page)
        self._tokens.pop(sequence, None)

    def take_moves(self) -> Moves:
        moves, self._moves = self._moves, Moves()
        self._out, self._back = {}, {}
        return moves


class _Pool:
    """Numbered pages with reference counts; those that nobody holds keep their content until they are
    taken.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.references = [0] * size
        self.page_of: dict[int, int] = {}
        self._content: dict[int, int] = {}
        self._plain = list(range(size - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # longest unused first

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._plain) + len(self._cached)

    def take(self) -> int:
        if self._plain:
            page = self._plain.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            del self.page_of[self._content.pop(page)]
        else:
            raise CapacityError(
                f"the scheduler granted room that the KV cache has not: "
                f"all {self.size} {self.name} pages are held"
            )
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        if not self.references[page]:
            del self._cached[page]
        self.references[page] += 1

    def drop(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page]:
            return
        if page in self._content:
            self._cached[page] = None
        else:
            self._plain.append(page)

    def name_page(self, page: int, content_id: int) -> None:
        """*page* holds the tokens of *content_id* from this step on; a second copy stays without a name."""
        if content_id not in self.page_of and page not in self._content:
            self.page_of[content_id] = page
            self._content[page] = content_id


EMPTY: Table = np.empty(0, dtype=np.int32)
