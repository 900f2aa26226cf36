"""TGI's block allocator: a request takes all it may need at once, behind the prefix that a trie has of it.

The trie (backends/v3/src/radix.rs, TGI 3 at db931fcf) keeps prompts only: outputs are freed with the request.
A lookup and an insertion stamp their whole path with one moment; a lookup splits nothing, so it may hold a
node longer than what it uses. Eviction takes the least recently used leaves and cuts the last to measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.scheduling.radix import RadixNode, RadixTree, Run
from simulator.scheduling.request import Request

__all__ = ["BlockPool", "PromptTrie"]


class PromptTrie(RadixTree):
    """The trie with TGI's rules of recency."""

    def find(self, runs: Sequence[Run], limit: int) -> tuple[RadixNode, int]:
        """The node that holds the end of the longest cached prefix, and its length in whole blocks."""
        node, i, limit, found = self.root, 0, self._floor(limit), 0
        time = self.tick()
        while (child := self._child(node, runs, i, limit)) is not None:
            child.time = time
            node, found = child, self._agree(child, runs, i, limit)
            if found < child.end:
                break
            while runs[i][1] <= found:
                i += 1
        return node, found

    def insert(self, runs: Sequence[Run], length: int) -> int:
        """Cache the first *length* tokens in whole blocks; returns how many were there already."""
        node, i, limit = self.root, 0, self._floor(length)
        time = self.tick()
        while (child := self._child(node, runs, i, limit)) is not None:
            child.time = time
            end = self._agree(child, runs, i, limit)
            if end == limit:
                return limit
            if end < child.end:
                child = self._split(child, end)
                child.time = time
            node = child
            while runs[i][1] <= end:
                i += 1
        found = node.end
        if found < limit:
            leaf = self._add(node, runs, i, limit)
            leaf.time = time
            self._queue(leaf)
        return found

    def evict(self, tokens: int) -> int:
        """Free *tokens*, whole leaves first, then the tail of one; returns how many were freed."""
        freed = 0
        while freed < tokens and (leaf := self._oldest()) is not None:
            if leaf.size <= tokens - freed:
                freed += self._drop(leaf)
                continue
            self.tokens -= tokens - freed
            self._truncate(leaf, leaf.end - (tokens - freed))
            self._queue(leaf)
            return tokens
        return freed

    def _truncate(self, leaf: RadixNode, end: int) -> None:
        runs = [run for run in leaf.runs if run[1] <= end]
        if not runs or runs[-1][1] < end:
            runs.append((leaf.runs[len(runs)][0], end))
        leaf.runs, leaf.end = runs, end


class BlockPool:
    """*num_blocks* usable blocks of *block_size* tokens; ``trie`` is None without prefix caching.

    A request's own bookkeeping: ``num_blocks`` all its blocks, ``registered`` the tokens of its cached
    prefix, ``own_node`` the node that holds their end, ``held`` its runs.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.trie = PromptTrie(block_size) if prefix_caching else None
        self.free = num_blocks

    @property
    def cached(self) -> int:
        """Blocks that only the trie holds."""
        return self.trie.evictable // self.block_size if self.trie is not None else 0

    def enter(self, request: Request) -> None:
        """Remember what *request*'s tokens are."""
        if self.trie is not None:
            request.held = self.trie.runs(request)

    def find(self, request: Request) -> int:
        """Hold on to what the trie has of *request*'s prompt; returns its tokens."""
        request.own_node, request.registered = None, 0
        if self.trie is not None:
            node, request.registered = self.trie.find(request.held, request.prompt_length)
            self.trie.lock(node)
            request.own_node = node
        return request.registered

    def allocate(self, request: Request, tokens: int) -> bool:
        """All blocks for *tokens* tokens of *request* at once, or none."""
        need = -(-(tokens - request.registered) // self.block_size)
        if need > self.free + self.cached:
            return False
        if need > self.free and self.trie is not None:
            self.free += self.trie.evict((need - self.free) * self.block_size) // self.block_size
        self.free -= need
        request.num_blocks = need + request.registered // self.block_size
        return True

    def forgo(self, request: Request) -> None:
        """*request* waits on: it lets go of its prefix."""
        if self.trie is not None and request.own_node is not None:
            self.trie.unlock(request.own_node)
        request.own_node, request.registered = None, 0

    def trim(self, request: Request, tokens: int) -> None:
        """*request* needs blocks for no more than *tokens* tokens."""
        blocks = -(-tokens // self.block_size)
        self.free += request.num_blocks - blocks
        request.num_blocks = blocks

    def release(self, request: Request, *, computed: bool) -> None:
        """*request* returns its blocks; the trie keeps those of its prompt, if it was *computed*."""
        size, prefix, prompt = self.block_size, request.registered, request.prompt_length
        kept = prefix // size
        if self.trie is not None and computed and prefix < prompt:
            found = self.trie.insert(request.held, prompt)
            self.free += (found - prefix) // size
            kept = prompt // size
        self.free += request.num_blocks - kept
        request.num_blocks = 0
        self.forgo(request)
