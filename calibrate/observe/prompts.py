"""Prompts of a wanted length: token ids drawn at random, equal where the trace says that prompts are equal.

Token *i* of a run of content is drawn from the run's id, so two prompts share what the trace says they share and the
server's prefix cache meets the same hits; the rest is the request's own. What a later turn quotes of an answer cannot
be the server's own words: it is a run like others. For endpoints that take text, each id stands for a word, and how
many tokens a word makes is measured on the server.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.workload import OUTPUT_ID_BASE, Trace

__all__ = ["HIGH_IDS", "LOW_IDS", "WORDS", "TextScale", "prompt_tokens", "prompt_words", "sent_content"]

HIGH_IDS = (1000, 32_000)
"""Within every large vocabulary, past the control tokens that some put first (Mistral's Tekken: 1000)."""
LOW_IDS = (16, 256)
"""For models of small vocabularies; 240 ids still make equal blocks of 16 impossible by chance."""
OWN = 1 << 61
"""Ids above it are made here: what a request does not share, and the answers that later turns quote."""
TEXT = """the of and to in is that it for was on are with as at be this have from or had by not but what all were when
we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only"""
WORDS = tuple(TEXT.split())


def sent_content(trace: Trace, index: int) -> list[tuple[int, int]]:
    """The runs of request *index* as they are sent: (content id, tokens)."""
    part = slice(trace.content_offsets[index], trace.content_offsets[index + 1])
    ids, tokens = trace.content_ids[part].tolist(), trace.content_tokens[part].tolist()
    return [(_sent_id(name), count) for name, count in zip(ids, tokens, strict=True)]


def _sent_id(name: int) -> int:
    return name - OUTPUT_ID_BASE + OWN if name >= OUTPUT_ID_BASE else name


def prompt_tokens(
    content: list[tuple[int, int]], length: int, index: int, ids: tuple[int, int], seed: int = 0
) -> list[int]:
    """*length* token ids in [ids[0], ids[1]) for request *index* whose prompt begins with *content*."""
    parts = [_draw([seed, 0, name & (2**63 - 1)], count, ids) for name, count in content]
    left = length - sum(len(part) for part in parts)
    parts.append(_draw([seed, 1, index], max(left, 0), ids))
    drawn: list[int] = np.concatenate(parts)[:length].tolist()
    return drawn


def _draw(key: list[int], count: int, ids: tuple[int, int]) -> np.ndarray:
    # One stream per key, read from its start: a shorter run is the beginning of a longer one.
    return np.random.default_rng(key).integers(*ids, count)


@dataclass(frozen=True)
class TextScale:
    """Prompt tokens of a text of *w* words: ``fixed + per_word * w``, as two probes of the server said."""

    fixed: float = 0.0
    per_word: float = 1.0

    @classmethod
    def through(cls, short: tuple[int, int], long: tuple[int, int]) -> TextScale:
        """The line through two (words, tokens)."""
        slope = (long[1] - short[1]) / (long[0] - short[0])
        return cls(short[1] - slope * short[0], slope)

    def words(self, tokens: int) -> int:
        """Words for a prompt of *tokens* tokens, at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


def prompt_words(tokens: list[int]) -> str:
    """A text with one word for each id."""
    return " ".join(WORDS[token % len(WORDS)] for token in tokens)
