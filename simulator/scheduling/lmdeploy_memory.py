"""KV blocks of LMDeploy's PyTorch engine, and its prefix trie.

A node of the trie is one full block. Blocks enter it when a sequence allocates, before they are computed:
those of a prompt at its admission, those of an answer when the sequence grows next. Where the trie has an
equal block already, the sequence takes that and returns its own. A block that only the trie owns is not
free; leaves of that kind are evicted when room is needed, by the whole second in which they were last
matched or freed (the release stores its clock in an integer), of equals the first created.

Read in LMDeploy 0.18.0 (pytorch/paging/block_trie, block_manager).
"""

from __future__ import annotations

import heapq
from typing import Any

from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request
from simulator.scheduling.token_runs import Tokens

__all__ = ["TrieMemory"]


class Node:
    """One full block under *parent*; ``refs`` sequences hold it beside the trie."""

    __slots__ = ("children", "key", "number", "parent", "refs", "time")

    def __init__(self, parent: Node | None, key: Any, number: int) -> None:
        self.parent = parent
        self.key = key
        self.number = number
        self.children: dict[Any, Node] = {}
        self.refs = 0
        self.time = 0


class TrieMemory:
    """*num_blocks* blocks of *block_size* tokens. ``request.held`` are the nodes that lead its blocks."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        if num_blocks < 1:
            raise ConfigurationError(f"num_gpu_blocks {num_blocks}: must be at least 1")
        if block_size < 1:
            raise ConfigurationError(f"block_size {block_size}: must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.num_free = num_blocks
        """Blocks that neither a sequence nor the trie owns."""
        self.num_cached = 0
        """Blocks that only the trie owns."""
        self.num_shared = 0
        """References of sequences to a block beyond the first."""
        self._root = Node(None, None, -1)
        self._num_nodes = 0
        self._leaves: list[tuple[int, int, Node]] = []

    def blocks_for(self, tokens: int) -> int:
        """Blocks of *tokens* tokens."""
        return -(-tokens // self.block_size)

    def take(self, request: Request, n: int) -> None:
        """*request* takes *n* free blocks."""
        self.num_free -= n
        request.num_blocks += n

    def release(self, request: Request, now: float) -> None:
        """*request* gives up all its blocks; those in the trie stay there."""
        self.num_free += request.num_blocks - len(request.held)
        for node in request.held:
            node.refs -= 1
            node.time = int(now)
            if node.refs:
                self.num_shared -= 1
            else:
                self.num_cached += 1
                self._offer(node)
        request.held.clear()
        request.num_blocks = 0

    # the trie

    def match(self, request: Request, sequence: Tokens, now: float) -> int:
        """Blocks of *sequence* that *request*, which has none, finds and takes; one token is left to compute."""
        if request.num_blocks:
            return 0
        node = self._root
        for end in range(self.block_size, len(sequence), self.block_size):
            child = node.children.get(self._key(sequence, end))
            if child is None:
                break
            child.time = int(now)
            self._hold(request, child)
            node = child
        request.num_blocks = len(request.held)
        return request.num_blocks

    def register(self, request: Request, sequence: Tokens, tokens: int) -> None:
        """The full blocks among the first *tokens* tokens of *request* enter the trie."""
        node: Node = request.held[-1] if request.held else self._root
        for end in range((len(request.held) + 1) * self.block_size, tokens + 1, self.block_size):
            key = self._key(sequence, end)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key, self._num_nodes)
                self._num_nodes += 1
                self.num_cached += 1  # until it is held, in a moment
            else:
                self.num_free += 1  # its own goes back
            self._hold(request, child)
            node = child

    def _key(self, sequence: Tokens, end: int) -> Any:
        return tuple(sequence.part(end - self.block_size, end).runs)

    def _hold(self, request: Request, node: Node) -> None:
        if node.refs:
            self.num_shared += 1
        else:
            self.num_cached -= 1
        node.refs += 1
        request.held.append(node)

    def _offer(self, node: Node) -> None:
        if not node.children:
            heapq.heappush(self._leaves, (node.time, node.number, node))

    def evict(self, n: int) -> int:
        """Free up to *n* blocks that only the trie owns, leaves first; returns how many."""
        evicted = 0
        while evicted < n and self._leaves:
            time, _, node = heapq.heappop(self._leaves)
            if node.refs or node.children or node.time != time or node.parent is None:
                continue
            parent, node.parent = node.parent, None
            del parent.children[node.key]
            evicted += 1
            if not parent.refs and parent is not self._root:
                self._offer(parent)
        self.num_free += evicted
        self.num_cached -= evicted
        return evicted
