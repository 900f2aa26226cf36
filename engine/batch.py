"""A batch as plain numbers: what the runner of every rank gets.

Rows come from the executor in any order; packed, the rows of one token go first (decode attention), then
the chunks (prefill attention). The logits that are wanted are those of each row's last positions: none for
a chunk in the middle of a prompt, one where a token is sampled, several where drafted tokens are verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BatchInput", "Row", "pack"]

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass
class Row:
    """*tokens* of one sequence to compute, the first at position *start*; *blocks* is its block table."""

    tokens: Sequence[int]
    start: int
    blocks: Int32
    num_logits: int = 1
    idle: bool = False
    """Computed for nothing, as in a padded batch: it writes no KV and gives no logits."""


@dataclass
class BatchInput:
    """Packed rows; shapes as in `engine.model.Layout`. *logit_rows* are the packed tokens whose logits are
    wanted.
    """

    tokens: Int64
    positions: Int64
    slots: Int64
    num_decodes: int
    decode_table: Int32
    decode_lens: Int32
    prefill_table: Int32
    query_start: Int32
    prefill_lens: Int32
    logit_rows: Int64
    order: list[int] = field(default_factory=list)
    """The given index of each packed row."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return len(self.tokens)


def pack(rows: Sequence[Row], block_size: int) -> BatchInput:
    """Pack *rows*; logits come out in the packed order, see `BatchInput.order`."""
    decodes = [i for i, row in enumerate(rows) if len(row.tokens) == 1]
    chunks = [i for i, row in enumerate(rows) if len(row.tokens) != 1]
    order = decodes + chunks
    lengths = np.array([len(rows[i].tokens) for i in order], dtype=np.int64)
    starts = np.array([rows[i].start for i in order], dtype=np.int64)
    ends = np.cumsum(lengths)
    tokens = np.fromiter((t for i in order for t in rows[i].tokens), dtype=np.int64, count=int(lengths.sum()))
    inside = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    positions = inside + np.repeat(starts, lengths)
    n = len(decodes)
    table = _table([rows[i].blocks for i in order])
    row_of = np.repeat(np.arange(len(order)), lengths)
    slots = table[row_of, positions // block_size].astype(np.int64) * block_size + positions % block_size
    idle = np.repeat(np.array([rows[i].idle for i in order], dtype=bool), lengths)
    slots[idle] = -1
    wanted = [np.arange(end - rows[i].num_logits, end) for i, end in zip(order, ends) if rows[i].num_logits]
    return BatchInput(
        tokens=tokens,
        positions=positions,
        slots=slots,
        num_decodes=n,
        decode_table=table[:n],
        decode_lens=(starts[:n] + 1).astype(np.int32),
        prefill_table=table[n:],
        query_start=(np.concatenate(([0], ends[n:] - n))).astype(np.int32),
        prefill_lens=(starts[n:] + lengths[n:]).astype(np.int32),
        logit_rows=np.concatenate(wanted) if wanted else np.empty(0, dtype=np.int64),
        order=order,
    )


def _table(blocks: list[Int32]) -> Int32:
    """Block tables side by side, padded with 0 (kernels read no entry behind a sequence's end)."""
    table = np.zeros((len(blocks), max((len(b) for b in blocks), default=0)), dtype=np.int32)
    for row, ids in zip(table, blocks):
        row[: len(ids)] = ids
    return table
