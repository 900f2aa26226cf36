"""Where a sequence's KV lies: block tables that the scheduler's block manager keeps, or pages of the
engine's own.

Paged systems (vLLM and its kin) number their blocks, and the engine uses these numbers. Systems that
reserve contiguous room or hand out slots (Orca, static batching, llama.cpp) have a memory rule but no
block numbers; for those the engine lays the KV into pages of its own as it is written, within what the
policy has granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.sequence import Sequence
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Scheduler
from simulator.scheduling.request import Request

__all__ = ["OwnPages", "Pages", "SchedulerPages", "make_pages"]

Table = NDArray[np.int32]


class Pages(Protocol):
    """Block tables by sequence."""

    def table(self, sequence: Sequence, tokens: int, *, moved: bool = False) -> Table:
        """The blocks of the first *tokens* tokens; *moved*: blocks may have changed, not only been added."""
        ...

    def kept(self, sequence: Sequence, context: int) -> int:
        """How many of *context* tokens, which the scheduler holds for computed, really have their KV here."""
        ...

    def free(self, sequence: Sequence) -> None:
        """The sequence has no KV any more."""
        ...


class SchedulerPages:
    """The tables of the scheduler's block manager (made with ``track_ids=True``)."""

    def __init__(self, tables: Mapping[Request, list[int]], block_size: int) -> None:
        self.tables, self.block_size = tables, block_size

    def table(self, sequence: Sequence, tokens: int, *, moved: bool = False) -> Table:
        ids = self.tables.get(sequence.request)
        need = -(-tokens // self.block_size)
        if ids is None or len(ids) < need:
            raise ConfigurationError(
                f"request {sequence.request.id}: the scheduler lists {len(ids or ())} blocks "
                f"for {tokens} tokens; "
                "the engine needs one made with track_ids=True"
            )
        known = 0 if moved or sequence.block_source is not ids else len(sequence.blocks)
        if known < len(ids):
            new = np.array(ids[known:], dtype=np.int32)
            sequence.blocks = np.concatenate((sequence.blocks[:known], new))
            sequence.block_source = ids
        return sequence.blocks[:need]

    def kept(self, sequence: Sequence, context: int) -> int:
        return context

    def free(self, sequence: Sequence) -> None:
        sequence.block_source = None


class OwnPages:
    """*num_blocks* pages that the engine hands out itself as tokens are written."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tokens: dict[Sequence, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def table(self, sequence: Sequence, tokens: int, *, moved: bool = False) -> Table:
        need = -(-tokens // self.block_size) - len(sequence.blocks)
        if need > len(self._free):
            raise CapacityError(
                f"the scheduler granted room that the KV cache has not: {need} pages wanted, "
                f"{len(self._free)} free"
            )
        if need > 0:
            new = np.array([self._free.pop() for _ in range(need)], dtype=np.int32)
            sequence.blocks = np.concatenate((sequence.blocks, new))
        self._tokens[sequence] = max(tokens, self._tokens.get(sequence, 0))
        return sequence.blocks[: -(-tokens // self.block_size)]

    def kept(self, sequence: Sequence, context: int) -> int:
        return min(context, self._tokens.get(sequence, 0))

    def free(self, sequence: Sequence) -> None:
        self._free.extend(sequence.blocks.tolist())
        sequence.blocks = sequence.blocks[:0]
        self._tokens.pop(sequence, None)


def make_pages(scheduler: Scheduler, num_blocks: int, block_size: int) -> Pages:
    """The scheduler's own tables where it has any."""
    tables = getattr(getattr(scheduler, "blocks", None), "tables", None)
    return OwnPages(num_blocks, block_size) if tables is None else SchedulerPages(tables, block_size)
