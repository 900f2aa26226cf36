"""From block ids to runs, over all prompts of a trace at once.

`compile_runs` turns items (block ids with their token counts) into runs in two steps:

* *chaining*: ids are renumbered until an id stands for itself and everything before it, i.e. it is a node of
  the trie of all prompts. Mooncake's ids are chained already, those of the aiperf documentation are not.
* *merging*: a node with a single child becomes one run with it, as in a radix tree, so that a Mooncake prompt
  of 24 blocks has about three runs. The common prefix of any two prompts, in tokens, is unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.workload.content import OUTPUT_ID_BASE, Blocks, Runs

__all__ = ["compile_blocks", "compile_runs"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
    # an end of one prompt that reaches beyond where others go on
    apart[nodes[tokens > length[nodes]]] = True
    return apart
