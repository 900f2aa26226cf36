"""KV blocks of transformers' continuous batching: shared, kept for reuse, thrown away all at once.

A block that a step has completed is hashed when the step's results are processed. If its content is there
already the request adopts the known block and gives its own back. When the last holder of a hashed block
ends, the block is *cached*: it can be matched, but it is not free; memory pressure evicts all cached blocks
together, and blocks of a request that loses its memory are not kept.

Content is a tree of content ids as in `simulator.scheduling.blocks`; only blocks that another prompt can name
have entries here, the others are counted. Read in transformers 5.23.0
(continuous_batching/cache_allocators/cache_allocator.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["LedgerNode", "SharedBlocks"]


class LedgerNode:
    """One content id at a token position under *parent*.

    ``holders`` counts the holders of each hashed block, 0: cached.
    """

    __slots__ = ("children", "holders", "key", "parent")

    def __init__(self, parent: LedgerNode | None, key: tuple[int, int]) -> None:
        self.parent = parent
        self.key = key
        self.children: dict[tuple[int, int], LedgerNode] = {}
        self.holders: dict[int, int] = {}


class SharedBlocks:
    """*num_blocks* blocks of *page_size* tokens: ``free``, ``cached`` and held ones.

    ``version`` grows with every block that becomes matchable.
    """

    def __init__(self, num_blocks: int, page_size: int) -> None:
        if num_blocks < 1:
            raise ConfigurationError(f"num_blocks {num_blocks}: must be at least 1")
        if page_size < 1:
            raise ConfigurationError(f"page_size {page_size}: must be at least 1")
        self.num_blocks = num_blocks
        self.page_size = page_size
        self.free = num_blocks
        self.cached = 0
        self.num_shared = 0
        """References to held blocks beyond the first."""
        self.num_evicted = 0
        self.version = 0
        self._root = LedgerNode(None, (0, 0))
        self._idle: dict[tuple[LedgerNode, int], None] = {}

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.free - self.cached

    def blocks_for(self, tokens: int) -> int:
        """Blocks that *tokens* tokens fill."""
        return -(-tokens // self.page_size)

    def take(self, n: int) -> None:
        """*n* free blocks are held from now on."""
        if n > self.free:
            raise ConfigurationError(f"cannot take {n} blocks: {self.free} of {self.num_blocks} are free")
        self.free -= n

    def match(self, request: Request, max_tokens: int) -> list[tuple[LedgerNode, int]]:
        """The hashed blocks that *request*'s content starts with, within its first *max_tokens* tokens."""
        found: list[tuple[LedgerNode, int]] = []
        node, position, limit = self._root, 0, max_tokens // self.page_size
        for content_id, tokens in request.content:
            child = node.children.get((position, content_id))
            if child is None or len(found) == limit:
                break
            node, position = child, position + tokens
            stop = min(position // self.page_size, limit)
            while len(found) < stop and len(found) in node.holders:
                found.append((node, len(found)))
            if len(found) < stop:
                break
        return found

    def acquire(self, request: Request, found: list[tuple[LedgerNode, int]]) -> None:
        """*request* holds the blocks it found."""
        for node, block in found:
            self._hold(node, block)
        request.held = found
        request.num_blocks = request.registered = len(found)

    def _hold(self, node: LedgerNode, block: int) -> None:
        holders = node.holders[block]
        node.holders[block] = holders + 1
        if holders:
            self.num_shared += 1
        else:
            del self._idle[node, block]
            self.cached -= 1

    def register(self, request: Request, upto: int) -> None:
        """Hash the first *upto* blocks of *request*; duplicates of known blocks become free."""
        block = request.registered
        if upto <= block:
            return
        node = self._root
        for node, stop in self._path(request):
            while block < min(stop, upto):
                self._hash(request, node, block)
                block += 1
            if block >= upto:
                break
        self._prune(node)
        request.registered = upto

    def _path(self, request: Request) -> Iterator[tuple[LedgerNode, int]]:
        """Nodes along *request*'s content, each with the block where it ends."""
        node, position = self._root, 0
        for content_id, tokens in request.content:
            node = self._child(node, (position, content_id))
            position += tokens
            yield node, position // self.page_size
        if request.output_id is not None and position >= request.prompt_length:
            yield self._child(node, (position, request.output_id)), 1 << 62

    def _child(self, parent: LedgerNode, key: tuple[int, int]) -> LedgerNode:
        child = parent.children.get(key)
        if child is None:
            child = parent.children[key] = LedgerNode(parent, key)
        return child

    def _hash(self, request: Request, node: LedgerNode, block: int) -> None:
        if block in node.holders:
            self._hold(node, block)
            self.free += 1
        else:
            node.holders[block] = 1
            self.version += 1
        request.held.append((node, block))

    def release(self, request: Request, *, keep: bool) -> None:
        """*request* gives everything back; with *keep* what is hashed stays cached."""
        for node, block in request.held:
            holders = node.holders[block] = node.holders[block] - 1
            if holders:
                self.num_shared -= 1
            elif keep:
                self.cached += 1
                self._idle[node, block] = None
            else:
                self._forget(node, block)
        own = request.registered - len(request.held)
        if keep:
            self.cached += own
        else:
            self.free += own
        self.free += request.num_blocks - request.registered
        request.held = []
        request.num_blocks = request.registered = 0

    def _forget(self, node: LedgerNode, block: int) -> None:
        del node.holders[block]
        self.free += 1
        self._prune(node)

    def _prune(self, node: LedgerNode) -> None:
        while node.parent is not None and not node.holders and not node.children:
            node.parent.children.pop(node.key, None)
            node = node.parent

    def evict(self) -> int:
        """Throw all cached blocks away; how many there were."""
        evicted = self.cached
        self.free += evicted - len(self._idle)
        for node, block in self._idle:
            self._forget(node, block)
        self._idle.clear()
        self.cached = 0
        self.num_evicted += evicted
        return evicted
