"""What a prompt's tokens are: runs of content, and how traces' block ids become runs.

Public traces name a prompt's content by the hash ids of its blocks: 512 tokens in Mooncake, 16 in
Qwen-Bailian. Two prompts share what their leading ids have in common. Here a prompt is a sequence of runs
``(content id, tokens)``; token *i* of a run is ``(id, i)`` and two prompts share exactly their common leading
tokens. `compile_runs` turns items (block ids with their token counts) into runs in two steps, both over the
whole trace at once:

* *chaining*: ids are renumbered until an id stands for itself and everything before it, i.e. it is a node of
  the trie of all prompts. Mooncake's ids are chained already, those of the aiperf documentation are not.
* *merging*: a node with a single child becomes one run with it, as in a radix tree, so that a Mooncake prompt
  of 24 blocks has about three runs. The common prefix of any two prompts, in tokens, is unchanged.

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
    "compile_blocks",
    "compile_runs",
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


def compile_runs(items: Runs) -> Runs:
    """*items* (see the module) as merged runs whose ids are unique per chain.

    Ids from `OUTPUT_ID_BASE` on keep their value and are never merged: they name outputs.
    """
    items = items.keep_positive(
        items.tokens, np.repeat(np.arange(len(items.offsets) - 1), np.diff(items.offsets))
    )
    if len(items.ids) == 0:
        return items
    first = np.zeros(len(items.ids), bool)
    first[items.offsets[:-1][np.diff(items.offsets) > 0]] = True
    nodes, distinct = dense_ids(items.ids)
    if not is_chained(nodes, items.tokens, first):
        nodes = chain_nodes(nodes, items)
        names = np.empty(int(nodes.max()) + 1, np.int64)
        names[nodes] = np.where(items.ids >= OUTPUT_ID_BASE, items.ids, nodes)
    else:
        names = distinct
    return merge_nodes(items, nodes, names, first)


def compile_blocks(blocks: Blocks) -> Runs:
    """`compile_runs` of the blocks, in a fraction of the time and memory where ids are small and chained."""
    offsets, ids = blocks.offsets, blocks.ids
    if len(ids) == 0:
        return Runs(offsets, ids, ids)
    if int(ids.min()) < 0 or int(ids.max()) > min(4 * len(ids) + 1024, np.iinfo(np.int32).max):
        return compile_runs(blocks.runs())
    nodes = ids.astype(np.int32)
    heads = offsets[:-1][np.diff(offsets) > 0]
    predecessor = predecessors(nodes, heads)
    if predecessor is None:
        return compile_runs(blocks.runs())
    children = np.bincount(predecessor[predecessor >= 0], minlength=len(predecessor))
    starts_run = np.ones(len(nodes), bool)
    np.not_equal((children == 1)[nodes[:-1]], True, out=starts_run[1:])
    starts_run[heads] = True
    starts = np.flatnonzero(starts_run)
    tokens = np.diff(starts, append=len(ids)) * blocks.block_size
    runs = Runs(np.searchsorted(starts, offsets).astype(np.int64), ids[starts], tokens)
    return runs.clipped(blocks.lengths)


def predecessors(nodes: NDArray[np.int32], heads: Ints) -> NDArray[np.int32] | None:
    """The id before each id, −1 for the first of a prompt, −2 for none; None where an id has several."""
    predecessor = np.full(int(nodes.max()) + 1, -2, np.int32)
    predecessor[nodes[1:]] = nodes[:-1]
    predecessor[nodes[heads]] = -1
    agrees = predecessor[nodes[1:]] == nodes[:-1]
    agrees[heads[1:] - 1] = True
    return predecessor if bool(agrees.all()) else None


def dense_ids(ids: Ints) -> tuple[Ints, Ints]:
    """Each id's small number, and the id of each small number."""
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high <= 4 * len(ids) + 1024:
        return ids, np.arange(high + 1)
    distinct, inverse = np.unique(ids, return_inverse=True)
    return inverse.astype(np.int64), distinct


def is_chained(nodes: Ints, tokens: Ints, first: Bools) -> bool:
    """Whether each id has one predecessor, always of one length: then ids are trie nodes already."""
    before = np.empty(len(nodes), np.int64)
    before[1:] = nodes[:-1]
    before[first] = -1
    predecessor = np.empty(int(nodes.max()) + 1, np.int64)
    predecessor[nodes] = before
    if not np.array_equal(predecessor[nodes], before):
        return False
    followed = np.flatnonzero(~first) - 1
    length = np.zeros(len(predecessor), np.int64)
    length[nodes[followed]] = tokens[followed]
    return bool(np.array_equal(length[nodes[followed]], tokens[followed]))


def chain_nodes(ids: Ints, items: Runs) -> Ints:
    """The trie node of every item, level by level: a node is (the tokens before it, its id)."""
    counts = np.diff(items.offsets)
    rows = np.argsort(-counts, kind="stable")
    active = len(counts) - np.searchsorted(np.sort(counts), np.arange(int(counts.max())), side="right")
    prefix = np.zeros(len(counts), np.int64)
    width, n_nodes = int(ids.max()) + 1, 0
    nodes = np.empty(len(ids), np.int64)
    for level, n_active in enumerate(active):
        row = rows[:n_active]
        entry = items.offsets[row] + level
        node = ranks(prefix[row] * width + ids[entry])
        nodes[entry] = node + n_nodes
        n_nodes += int(node.max()) + 1
        lengths = items.tokens[entry]
        prefix[row] = ranks(node * (int(lengths.max()) + 1) + lengths)
    return nodes


def ranks(keys: Ints) -> Ints:
    """Each key's number among the distinct keys."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def merge_nodes(items: Runs, nodes: Ints, names: Ints, first: Bools) -> Runs:
    """Runs of nodes with a single child, each named by its first node."""
    joined = np.zeros(len(nodes), bool)
    joined[1:] = ~first[1:] & ~keeps_apart(nodes, items.tokens, names >= OUTPUT_ID_BASE, first)[nodes[:-1]]
    starts = np.flatnonzero(~joined)
    return Runs(
        np.searchsorted(starts, items.offsets).astype(np.int64),
        names[nodes[starts]],
        np.add.reduceat(items.tokens, starts),
    )


def keeps_apart(nodes: Ints, tokens: Ints, is_output: Bools, first: Bools) -> Bools:
    """Nodes that end a run: they have several children, none, or a length that is not the same for all."""
    followed = np.flatnonzero(~first) - 1
    parent, child = nodes[followed], nodes[followed + 1]
    only_child = np.full(len(is_output), -1, np.int64)
    only_child[parent] = child
    apart: Bools = is_output | is_output[only_child]
    apart[parent[only_child[parent] != child]] = True
    length = np.full(len(is_output), np.iinfo(np.int64).max)
    length[parent] = tokens[followed]
    apart[nodes[tokens > length[nodes]]] = (
        True  # an end of a prompt that reaches beyond where the others go on
    )
    return apart
