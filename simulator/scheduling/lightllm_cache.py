"""LightLLM's KV memory: a pool of single tokens and a prompt cache that is a radix tree.

Requests put their tokens into the tree only when they finish or are paused, so prompts that run at the same
time do not share. Recency is a counter: a lookup and an insertion touch every node of their path, the deepest
first, so a parent is always more recent than its children (server/router/dynamic_prompt/radix_cache.py,
LightLLM fc72ffab).
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.errors import ConfigurationError
from simulator.scheduling.radix import RadixNode, RadixTree, Run
from simulator.scheduling.request import Request

__all__ = ["PromptCache", "PromptPool"]


class PromptCache(RadixTree):
    """The tree with LightLLM's rules of recency; ``locked`` counts what requests started from, for each of
    them.
    """

    locked = 0

    def match(self, runs: Sequence[Run], limit: int) -> RadixNode:
        """The deepest node on the path of the first *limit* tokens; one matched in part is split there."""
        node, i = self.root, 0
        found: RadixNode | None = None
        while (child := self._child(node, runs, i, limit)) is not None:
            end = self._agree(child, runs, i, limit)
            if end < child.end:
                found = self._split(child, end)
                found.time = self.tick()
                break
            node = child
            while runs[i][1] <= end:
                i += 1
        self._touch_path(node)
        return found or node

    def insert(self, runs: Sequence[Run], length: int) -> int:
        """Cache the first *length* tokens; returns how many were there already."""
        node, i = self.root, 0
        if not length:
            return 0
        while (child := self._child(node, runs, i, length)) is not None:
            end = self._agree(child, runs, i, length)
            if end == length:  # inside or at the end of the child, which stays whole
                self._touch_path(child)
                return length
            if end < child.end:
                upper = self._split(child, end)
                upper.time = self.tick()
                self._grow(upper, runs, i, length)
                self._touch_path(node)
                return end
            node = child
            while runs[i][1] <= end:
                i += 1
        found = node.end
        self._grow(node, runs, i, length)
        self._touch_path(node)
        return found

    def _grow(self, parent: RadixNode, runs: Sequence[Run], i: int, length: int) -> None:
        while runs[i][1] <= parent.end:
            i += 1
        leaf = self._add(parent, runs, i, length)
        leaf.time = self.tick()
        self._queue(leaf)

    def _touch_path(self, node: RadixNode | None) -> None:
        while node is not None:
            node.time = self.tick()
            node = node.parent


class PromptPool:
    """*max_total_token_num* tokens of KV; ``cache`` is None without the prompt cache.

    A request's own bookkeeping: ``held`` its runs, ``own_node`` the node of its hit, ``registered`` the
    tokens of it.
    """

    def __init__(self, max_total_token_num: int, *, prompt_cache: bool) -> None:
        if max_total_token_num < 1:
            raise ConfigurationError(f"max_total_token_num {max_total_token_num}: must be at least 1")
        self.capacity = max_total_token_num
        self.cache = PromptCache() if prompt_cache else None
        self.free = max_total_token_num

    @property
    def available(self) -> int:
        """Tokens that are free or can be evicted."""
        return self.free + (self.cache.evictable if self.cache else 0)

    @property
    def used(self) -> int:
        """Tokens that requests hold, as the router counts them."""
        return self.capacity - self.available

    def enter(self, request: Request) -> None:
        """Remember what *request*'s tokens are."""
        if self.cache:
            request.held = self.cache.runs(request)

    def take(self, tokens: int) -> None:
        """Take *tokens*, free ones first, then those of evicted leaves."""
        if tokens > self.free and self.cache:
            self.free += self.cache.evict(tokens - self.free)
        if tokens > self.free:
            raise ConfigurationError(
                f"cannot take {tokens} tokens of KV: {self.free} of {self.capacity} are free"
            )
        self.free -= tokens

    def start(self, request: Request) -> int:
        """*request* takes what the cache has of all its tokens but the last; returns how many."""
        request.own_node, request.registered = None, 0
        if self.cache and request.target > 1:
            node = self.cache.match(request.held, request.target - 1)
            self.cache.lock(node)
            self.cache.locked += node.end
            request.own_node, request.registered = node, node.end
        return request.registered

    def release(self, request: Request, computed: int) -> None:
        """*request* gives its *computed* tokens to the cache, which frees those it has already."""
        if self.cache is None:
            self.free += computed
            return
        found = self.cache.insert(request.held, computed)
        self.free += found - request.registered
        if request.own_node is not None:
            self.cache.unlock(request.own_node)
            self.cache.locked -= request.registered
        request.own_node, request.registered = None, 0
