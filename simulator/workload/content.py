"""What a prompt's tokens are: runs of content, and how those of many prompts are held.

Public traces name a prompt's content by the hash ids of its blocks: 512 tokens in Mooncake, 16 in
Qwen-Bailian. Two prompts share what their leading ids have in common. Here a prompt is a sequence of runs
``(content id, tokens)``; token *i* of a run is ``(id, i)`` and two prompts share exactly their common leading
tokens.

The items of many prompts are in CSR form: ``offsets`` int64[n + 1], ``ids`` and ``tokens`` int64[offsets[n]].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OUTPUT_ID_BASE",
    "Blocks",
    "Runs",
    "common_prefix",
    "gather_runs",
    "rename_outputs",
]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

OUTPUT_ID_BASE = 1 << 62
"""The output of request *i* (sample 0) has the content id ``OUTPUT_ID_BASE + i``; a later turn's prompt may
name it."""


class Runs(NamedTuple):
    """Content of *n* prompts in CSR form: prompt *i* is entries ``offsets[i]:offsets[i + 1]``."""

    offsets: Ints
    ids: Ints
    tokens: Ints

    @classmethod
    def empty(cls, n: int) -> Runs:
        """*n* prompts of which nothing is known."""
        return cls(np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of_blocks(cls, offsets: Ints, ids: Ints, block_size: int) -> Runs:
        """One item of *block_size* tokens for each block id."""
        return cls(offsets, ids, np.full(len(ids), block_size, np.int64))

    def clipped(self, lengths: Ints) -> Runs:
        """The same without what lies beyond each prompt's length: a partial block counts what it holds."""
        row = np.repeat(np.arange(len(lengths)), np.diff(self.offsets))
        before = exclusive_sum(self.tokens, self.offsets, row)
        return self.keep_positive(np.minimum(self.tokens, np.asarray(lengths)[row] - before), row)

    def keep_positive(self, tokens: Ints, row: Ints) -> Runs:
        """The same with *tokens*, entries without any left out."""
        if len(tokens) == 0 or int(tokens.min()) > 0:
            return Runs(self.offsets, self.ids, tokens)
        kept = tokens > 0
        counts = np.bincount(row[kept], minlength=len(self.offsets) - 1)
        return Runs(offsets_of(counts), self.ids[kept], tokens[kept])


class Blocks(NamedTuple):
    """Block ids of *n* prompts in CSR form; each block holds *block_size* tokens, a prompt's last what is
    left.
    """

    offsets: Ints
    ids: Ints
    block_size: int
    lengths: Ints
    """Prompt lengths in tokens, int64[n]."""

    def runs(self) -> Runs:
        """One run for each block."""
        return Runs.of_blocks(self.offsets, self.ids, self.block_size).clipped(self.lengths)


def offsets_of(counts: NDArray[np.integer]) -> Ints:
    """CSR offsets int64[n + 1] of rows with *counts* entries."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def exclusive_sum(values: Ints, offsets: Ints, row: Ints) -> Ints:
    """Σ of the earlier *values* of the same row, for every entry."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    result: Ints = total[:-1] - total[offsets[:-1]][row]
    return result


def gather_runs(runs: Runs, starts: Ints, stops: Ints) -> Runs:
    """Rows made of the entries ``starts[i]:stops[i]``."""
    counts = stops - starts
    offsets = offsets_of(counts)
    entry = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Runs(offsets, runs.ids[entry], runs.tokens[entry])


def common_prefix(runs: Runs, i: int, j: int) -> int:
    """Leading tokens that prompts *i* and *j* share."""
    shared = 0
    a, b = (slice(runs.offsets[k], runs.offsets[k + 1]) for k in (i, j))
    for id_a, id_b, n_a, n_b in zip(runs.ids[a], runs.ids[b], runs.tokens[a], runs.tokens[b]):
        if id_a != id_b:
            break
        shared += int(min(n_a, n_b))
        if n_a != n_b:
            break
    return shared


def rename_outputs(ids: Ints, chosen: Ints, n: int) -> Ints:
    """*ids* with outputs named by the positions in *chosen* of the requests they belong to, of *n* before.

    The output of a request not chosen gets an ordinary id of its own.
    """
    named = ids >= OUTPUT_ID_BASE
    if not named.any():
        return ids
    position = np.full(n, -1, np.int64)
    position[chosen] = np.arange(len(chosen))
    old = ids[named] - OUTPUT_ID_BASE
    fresh = int(ids[~named].max(initial=-1)) + 1
    renamed = ids.copy()
    renamed[named] = np.where(position[old] >= 0, OUTPUT_ID_BASE + position[old], fresh + old)
    return renamed
