"""Prefix caches that are radix trees over tokens, counted in runs.

SGLang, LightLLM and TGI keep cached KV in a compressed trie: a node is a stretch of tokens that were always
used together, children differ in their first token (or page), and what a sequence finds is the longest path
that agrees with it. Nodes are split where sequences part; nodes that a request uses are locked up to the
root; memory is reclaimed from unlocked leaves, least recently used first, whole nodes at a time, and a parent
without children is a leaf in turn.

Only sizes are kept. A sequence is a list of runs ``(tag, stop)``: up to position *stop* its tokens are those
of *tag*, ``(start, content id)``. Two sequences agree at a position exactly when their tags do, so no token
is ever looked at.

`RadixTree` has the structure; a subclass says which nodes a lookup or an insertion makes recent. `RadixCache`
is SGLang's (mem_cache/unified_cache/unified_tree_core.py, 0.5.23).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["RadixCache", "RadixNode", "RadixTree", "Run", "dfs_weight_order"]

Tag = tuple[int, int]
Run = tuple[Tag, int]
"""``(tag, stop)``."""

ENDLESS = 1 << 60


class RadixNode:
    """Tokens *start* to *end* of every sequence that passes here."""

    __slots__ = ("children", "end", "key", "locks", "parent", "queued", "runs", "start", "time")

    def __init__(
        self, parent: RadixNode | None, key: object, runs: Sequence[Run], start: int, end: int
    ) -> None:
        self.parent = parent
        self.key = key
        self.runs = runs
        self.start = start
        self.end = end
        self.children: dict[object, RadixNode] = {}
        self.locks = 0
        self.time = 0.0
        self.queued = False

    @property
    def size(self) -> int:
        """Tokens of this node."""
        return self.end - self.start


class RadixTree:
    """The trie over tokens, or over pages of *page_size* tokens, with its locks and its queue of leaves.

    ``tokens`` are cached in all, ``protected`` of them locked; the rest can be evicted.
    """

    def __init__(self, page_size: int = 1) -> None:
        if page_size < 1:
            raise ConfigurationError(f"page_size {page_size}: must be at least 1")
        self.page_size = page_size
        self.root = RadixNode(None, None, (), 0, 0)
        self.root.locks = 1
        self.tokens = 0
        self.protected = 0
        self._clock = 0.0
        self._leaves: list[tuple[float, int, RadixNode]] = []  # each leaf at most once, under a time it had
        self._num_queued = 0
        self._num_own = 0

    @property
    def evictable(self) -> int:
        """Tokens in unlocked nodes."""
        return self.tokens - self.protected

    def tick(self) -> float:
        """The next moment of the tree's own clock."""
        self._clock += 1
        return self._clock

    # sequences

    def runs(self, request: Request) -> list[Run]:
        """The tokens of *request*: named content, what is its own, and its output, which never ends."""
        runs: list[Run] = []
        position, length = 0, request.prompt_length
        for content_id, tokens in request.content:
            stop = min(position + tokens, length)
            if stop > position:
                runs.append(((position, content_id), stop))
                position = stop
        if position == length and request.output_id is not None:
            runs.append(((position, request.output_id), ENDLESS))
        else:
            self._num_own += 1
            runs.append(((position, -self._num_own), ENDLESS))
        return runs

    def _key(self, runs: Sequence[Run], i: int, position: int) -> object:
        """What the page at *position* is filed under; run *i* holds *position*."""
        tag, stop = runs[i]
        if self.page_size == 1:
            return tag
        end = position + self.page_size
        if stop >= end:
            return tag
        parts = [(tag, stop)]
        while stop < end:
            i += 1
            tag, stop = runs[i]
            parts.append((tag, min(stop, end)))
        return tuple(parts)

    def _agree(self, node: RadixNode, runs: Sequence[Run], i: int, limit: int) -> int:
        """The position up to which *node* and *runs* agree, at most *limit*, in whole pages."""
        position = node.start
        for tag, stop in node.runs:
            if runs[i][0] != tag:
                break
            position = min(stop, runs[i][1], limit)
            if position < stop or position == limit:
                break
            if runs[i][1] == stop:
                i += 1
        return position - position % self.page_size

    def _floor(self, tokens: int) -> int:
        return tokens - tokens % self.page_size

    # structure

    def _child(self, node: RadixNode, runs: Sequence[Run], i: int, limit: int) -> RadixNode | None:
        if node.end >= limit or not node.children:
            return None
        return node.children.get(self._key(runs, i, node.end))

    def _split(self, child: RadixNode, at: int) -> RadixNode:
        """Cut *child* in two; returns the new upper part, which is locked as *child* is."""
        parent = child.parent
        assert parent is not None
        i = _index(child.runs, at)
        head = list(child.runs[:i])
        if not head or head[-1][1] < at:
            head.append((child.runs[i][0], at))
        upper = RadixNode(parent, child.key, head, child.start, at)
        upper.locks = child.locks
        child.key = self._key(child.runs, i, at)
        child.runs = child.runs[i:]
        child.parent, child.start = upper, at
        upper.children[child.key] = child
        parent.children[upper.key] = upper
        return upper

    def _add(self, parent: RadixNode, runs: Sequence[Run], i: int, end: int) -> RadixNode:
        """A new leaf below *parent* that holds *runs* up to *end*."""
        key = self._key(runs, i, parent.end)
        last = i
        while runs[last][1] < end:
            last += 1
        node = RadixNode(parent, key, [*runs[i:last], (runs[last][0], end)], parent.end, end)
        parent.children[key] = node
        self.tokens += node.end - node.start
        return node

    # locks

    def lock(self, node: RadixNode) -> None:
        """*node* and all above it are in use."""
        while node.parent is not None:
            if not node.locks:
                self.protected += node.end - node.start
            node.locks += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        """Take back one `lock` of *node*."""
        while node.parent is not None:
            node.locks -= 1
            if not node.locks:
                self.protected -= node.end - node.start
                if not node.children:
                    self._queue(node)
            node = node.parent

    # eviction

    def _queue(self, leaf: RadixNode) -> None:
        if not leaf.queued:
            leaf.queued = True
            self._num_queued += 1
            heapq.heappush(self._leaves, (leaf.time, self._num_queued, leaf))

    def _oldest(self) -> RadixNode | None:
        """Take the least recently used leaf from the queue."""
        leaves = self._leaves
        while leaves:
            time, _, leaf = heapq.heappop(leaves)
            leaf.queued = False
            if leaf.children or leaf.locks:
                continue
            if leaf.time == time:
                return leaf
            self._queue(leaf)  # used since it was queued
        return None

    def _drop(self, leaf: RadixNode) -> int:
        """Remove *leaf*; returns its tokens."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key]
        if not parent.children and not parent.locks:
            self._queue(parent)
        self.tokens -= leaf.end - leaf.start
        return leaf.end - leaf.start

    def evict(self, tokens: int) -> int:
        """Drop least recently used leaves until *tokens* are freed or none is left; returns how many were."""
        freed = 0
        while freed < tokens and (leaf := self._oldest()) is not None:
            freed += self._drop(leaf)
        return freed


class RadixCache(RadixTree):
    """SGLang's rules of recency: a lookup stamps its whole path, the deepest node newest; an insertion
    stamps node after node from the root; the lower part of a split node counts as just used.
    """

    def match(self, runs: Sequence[Run], limit: int) -> RadixNode:
        """The deepest node on the path of the first *limit* tokens; a node matched in part is split there."""
        node, i, limit = self.root, 0, self._floor(limit)
        while (child := self._child(node, runs, i, limit)) is not None:
            end = self._agree(child, runs, i, limit)
            if end < child.end:
                node = self._cut(child, end)
                break
            node = child
            while runs[i][1] <= end:
                i += 1
        if limit:
            self._stamp_path(node)
        return node

    def _stamp_path(self, node: RadixNode | None) -> None:
        time = self.tick()
        while node is not None:
            node.time = time
            time -= 1e-5
            node = node.parent

    def _cut(self, child: RadixNode, at: int) -> RadixNode:
        upper = self._split(child, at)
        upper.time = self.tick()
        child.time = self.tick()
        return upper

    def insert(
        self, runs: Sequence[Run], length: int, start: RadixNode | None = None
    ) -> tuple[RadixNode, int]:
        """Cache the first *length* tokens in whole pages, from *start* on, which is on their path.

        Returns the node of the last one and the tokens found there already.
        """
        node = start or self.root
        i, limit = _index(runs, node.end), self._floor(length)
        self._touch_path(node)
        while (child := self._child(node, runs, i, limit)) is not None:
            child.time = self.tick()
            end = self._agree(child, runs, i, limit)
            node = child if end == child.end else self._cut(child, end)
            while runs[i][1] <= end:
                i += 1
        found = node.end
        if found < limit:
            node = self._add(node, runs, i, limit)
            node.time = self.tick()
            self._queue(node)
        return node, found

    def part(self, node: RadixNode, length: int) -> None:
        """Insert the first *length* tokens of *node*'s path once more, so that a node ends there."""
        last = node
        while last.start >= length and last.parent is not None:
            last = last.parent
        self._touch_path(last)
        if last.end > length:
            self._cut(last, length)

    def _touch_path(self, node: RadixNode | None) -> None:
        path = []
        while node is not None:
            path.append(node)
            node = node.parent
        for node in reversed(path):
            node.time = self._clock = self._clock + 1


def _index(runs: Sequence[Run], position: int) -> int:
    """The run that holds *position*, or the last one."""
    for i, (_, stop) in enumerate(runs):
        if position < stop:
            return i
    return len(runs) - 1


def dfs_weight_order(root: RadixNode, nodes: Iterable[RadixNode]) -> list[int]:
    """Indices of *nodes* in depth-first order, the children with the most of them below first, a node's own
    last.
    """
    at: dict[RadixNode, list[int]] = {}
    for index, node in enumerate(nodes):
        at.setdefault(node, []).append(index)
    weights: dict[RadixNode, int] = {}
    for node, indices in at.items():
        above: RadixNode | None = node
        while above is not None:
            weights[above] = weights.get(above, 0) + len(indices)
            above = above.parent
    order: list[int] = []
    stack = [(root, False)]
    while stack:
        node, visited = stack.pop()
        if visited:
            order.extend(at.get(node, ()))
            continue
        stack.append((node, True))
        below = [child for child in node.children.values() if child in weights]
        below.sort(key=lambda child: -weights[child])
        stack.extend((child, False) for child in reversed(below))
    return order
