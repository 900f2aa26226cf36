"""llama.cpp's prompt cache in host memory: whole sequence states, oldest out first.

A slot that is about to lose its contents, or that falls idle, is saved: tokens and KV. A later prompt that
shares enough with a saved one takes it back into its slot; the entry is moved, not copied
(`server_prompt_cache`, tools/server/server-task.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from simulator.scheduling.token_runs import Tokens

__all__ = ["Journal", "PromptCache"]

Journal = Callable[..., None]
"""Called with what happened and its particulars, for comparison with a recorded server."""

LEAST_KEPT = np.float32(0.25)
"""Entries of which a smaller fraction would be kept stay where they are."""


class Entry:
    """A saved sequence: *tokens* and the *size* of its state in bytes."""

    __slots__ = ("size", "tokens")

    def __init__(self, tokens: Tokens, size: int) -> None:
        self.tokens = tokens
        self.size = size


class PromptCache:
    """Saved sequences of at most *limit* bytes in all; a *limit* below 0 holds *limit_tokens* tokens instead.

    *token_bytes* are those of the KV of one token with its position, *base_bytes* those of an empty state.
    """

    def __init__(
        self, limit: int, limit_tokens: int, base_bytes: int, token_bytes: int, journal: Journal
    ) -> None:
        self.limit = limit
        self.limit_tokens = limit_tokens
        self.base_bytes = base_bytes
        self.token_bytes = token_bytes
        self.journal = journal
        self.size = 0
        self.num_tokens = 0
        self.entries: dict[Entry, None] = {}
        """In the order of saving."""
        self._by_head: dict[tuple[Hashable, int] | None, dict[Entry, None]] = {}

    def save(self, tokens: Tokens, slot: int) -> None:
        """Save what *slot* holds, unless an entry contains it; entries that it contains go."""
        size = self.base_bytes + self.token_bytes * len(tokens)
        self.journal("save", slot, len(tokens), size)
        alike = list(self._by_head.get(tokens.head, ()))
        common = {entry: entry.tokens.common_prefix(tokens) for entry in alike}
        if any(n == len(tokens) for n in common.values()):
            self.journal("save_skip")
            return
        if 0 <= self.limit < size:
            self.journal("save_over")
            return
        for entry, n in common.items():
            if n == len(entry.tokens):
                self.journal("save_obsolete", n)
                self._drop(entry)
        while self.entries and 0 <= self.limit < self.size + size:
            self._evict()
        self._keep(Entry(tokens.part(0, len(tokens)), size))
        while self.limit < 0 and self.num_tokens > self.limit_tokens:
            self._evict()

    def _keep(self, entry: Entry) -> None:
        self.entries[entry] = None
        self._by_head.setdefault(entry.tokens.head, {})[entry] = None
        self.size += entry.size
        self.num_tokens += len(entry.tokens)

    def _evict(self) -> None:
        self.journal("evict")
        self._drop(next(iter(self.entries)))

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry]
        alike = self._by_head[entry.tokens.head]
        del alike[entry]
        if not alike:
            del self._by_head[entry.tokens.head]
        self.size -= entry.size
        self.num_tokens -= len(entry.tokens)

    def find(self, held: Tokens, prompt: Tokens) -> Entry | None:
        """The entry that serves *prompt* better than *held*: more of both would be kept and used."""
        common = held.common_prefix(prompt)
        kept = np.float32(common) / np.float32(len(held)) if len(held) else np.float32(-1)
        found, most = None, common
        for entry in self._by_head.get(prompt.head, ()):
            n = entry.tokens.common_prefix(prompt)
            fraction = np.float32(n) / np.float32(len(entry.tokens))
            if fraction >= LEAST_KEPT and kept < fraction and most < n:
                found, most, kept = entry, n, fraction
        if found is not None:
            self.journal("load", float(kept), most / len(prompt))
        return found

    def clear(self) -> None:
        """Forget every entry."""
        self.entries.clear()
        self._by_head.clear()
        self.size = self.num_tokens = 0

    def take(self, entry: Entry) -> Tokens:
        """Move *entry* out of the cache."""
        self._drop(entry)
        return entry.tokens
