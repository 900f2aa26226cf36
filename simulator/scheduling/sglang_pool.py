"""SGLang's KV memory: a pool of tokens in pages, of which a radix cache owns what it has cached.

A token of the pool is free, in the tree (locked by requests or evictable) or private to one request. A
request starts on the locked path of its longest match, computes into private pages, and hands them to the
tree at each checkpoint: after a chunk, after its prompt, and when it finishes. What the tree already has by
then is freed as a duplicate (mem_cache/unified_radix_cache.py: `checkpoint_into_tree`; mem_cache/common.py:
`release_kv_cache`; SGLang 0.5.23).

A request's own bookkeeping: ``held`` its runs, ``own_node`` the locked node, ``registered`` the tokens up to
that node.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.radix import RadixCache, RadixNode
from simulator.scheduling.request import Request

__all__ = ["TokenPool"]


class TokenPool:
    """*max_total_tokens* tokens of KV in pages of *page_size*; ``cache`` is None where prefixes are not
    shared.
    """

    def __init__(self, max_total_tokens: int, page_size: int, *, radix_cache: bool) -> None:
        if page_size < 1:
            raise ConfigurationError(f"page_size {page_size}: must be at least 1")
        self.capacity = max_total_tokens - max_total_tokens % page_size
        if self.capacity < page_size:
            raise ConfigurationError(f"max_total_tokens {max_total_tokens}: below one page of {page_size}")
        self.page_size = page_size
        self.cache = RadixCache(page_size) if radix_cache else None
        self.free = self.capacity
        self.locked = 0
        """Tokens in the tree that requests start from, those of several counted for each."""

    @property
    def available(self) -> int:
        """Tokens that are free or can be evicted."""
        cache = self.cache
        return self.free if cache is None else self.free + cache.tokens - cache.protected

    def ceil(self, tokens: int) -> int:
        """*tokens* rounded up to whole pages."""
        return -(-tokens // self.page_size) * self.page_size

    # memory

    def reserve(self, tokens: int) -> bool:
        """Evict until *tokens* are free, or nothing is left to evict; whether they are."""
        short = tokens - self.free
        if short > 0 and self.cache is not None:
            self.free += self.cache.evict(short)
        return tokens <= self.free

    def take(self, tokens: int) -> None:
        """Take *tokens* free tokens, in whole pages."""
        if tokens > self.free:
            raise ConfigurationError(
                f"cannot take {tokens} tokens of KV: {self.free} of {self.capacity} are free"
            )
        self.free -= tokens

    # requests

    def enter(self, request: Request) -> None:
        """Remember what *request*'s tokens are."""
        if self.cache is not None:
            request.held = self.cache.runs(request)

    def match(self, request: Request, limit: int) -> RadixNode | None:
        """Where the first *limit* tokens of *request* lead in the tree."""
        return self.cache.match(request.held, limit) if self.cache is not None else None

    def lock(self, request: Request, node: RadixNode | None) -> None:
        """*request* starts from the path to *node*."""
        request.own_node, request.registered = node, 0
        if self.cache is not None and node is not None:
            self.cache.lock(node)
            request.registered = node.end
            self.locked += node.end

    def unlock(self, request: Request) -> None:
        """*request* no longer needs its path."""
        if self.cache is not None and request.own_node is not None:
            self.cache.unlock(request.own_node)
            self.locked -= request.registered
        request.own_node, request.registered = None, 0

    def checkpoint(self, request: Request, length: int) -> None:
        """The tree takes the first *length* tokens of *request*, which stays on them.

        The leaf is split at the end of the prompt, so that outputs can be evicted without it.
        """
        cache = self.cache
        if cache is None or length <= 0:
            return
        runs: list[tuple[tuple[int, int], int]] = request.held
        node, found = cache.insert(runs, length, request.own_node)
        prompt = request.prompt_length - request.prompt_length % self.page_size
        if 0 < prompt < node.end:
            cache.part(node, prompt)
        cache.lock(node)
        if request.own_node:
            cache.unlock(request.own_node)
        self.free += found - request.registered
        self.locked += node.end - request.registered
        request.own_node, request.registered = node, node.end

    def release(self, request: Request, computed: int, keep: int) -> None:
        """*request* returns the KV of its *computed* tokens; the tree keeps the first *keep* (0: none of
        them).
        """
        if keep:
            self.checkpoint(request, keep)
        self.free += self.ceil(computed) - request.registered
        self.unlock(request)
