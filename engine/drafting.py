"""Where drafted tokens come from, and which of them stand.

A draft is checked by the model in one pass. Each token is accepted with probability min(1, p / q) and the first
refused one is drawn again from what is left of p, so that the text has the model's own distribution whatever the
draft (Leviathan et al. 2023, theorem 1; Chen et al. 2023). A draft without a distribution (n-grams of the prompt)
has q = 1 for its token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.batch import Row, pack
from engine.pages import Moves, Table
from engine.runner import ModelRunner
from engine.sampling import Sampler
from engine.sequence import Sequence

__all__ = ["Draft", "DraftModel", "NgramProposer", "Proposer", "accept"]


@dataclass
class Draft:
    """Guessed *tokens*; *probabilities* fp64 ``[len(tokens), vocabulary]`` that they were drawn from,
    None: certain.
    """

    tokens: list[int]
    probabilities: Tensor | None = None


class Proposer(Protocol):
    """Where drafts come from."""

    def propose(self, sequences: Rows[Sequence], limits: Rows[int], tables: Rows[Table]) -> list[Draft]:
        """At most *limits* tokens for each sequence; *tables* have room for them."""
        ...

    def computed(self, rows: Rows[Row]) -> None:
        """The model is about to compute *rows* of prompts."""
        ...

    def moved(self, moves: Moves) -> None:
        """The model's blocks move."""
        ...


class NgramProposer:
    """What followed the last time that the text ended like this (prompt lookup; Saxena 2023)."""

    def __init__(self, num_tokens: int, longest: int = 3) -> None:
        self.num_tokens, self.longest = num_tokens, longest

    def propose(self, sequences: Rows[Sequence], limits: Rows[int], tables: Rows[Table]) -> list[Draft]:
        return [Draft(self._lookup(s.tokens, limit)) for s, limit in zip(sequences, limits)]

    def computed(self, rows: Rows[Row]) -> None:
        pass

    def moved(self, moves: Moves) -> None:
        pass

    def _lookup(self, tokens: list[int], limit: int) -> list[int]:
        text = np.asarray(tokens)
        for size in range(min(self.longest, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
            matches = np.flatnonzero((windows == text[-size:]).all(axis=1))
            if len(matches):
                start = int(matches[-1]) + size
                return tokens[start : start + limit]
        return []


class DraftModel:
    """A smaller model over pages of the same numbers: what the model has computed of a sequence, the draft
    has too.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.sampler = Sampler(runner.decoder.kernels)

    def computed(self, rows: Rows[Row]) -> None:
        silent = [Row(row.tokens, row.start, row.blocks, 0) for row in rows]
        self._run(silent)

    def moved(self, moves: Moves) -> None:
        self.runner.move(moves)

    def propose(self, sequences: Rows[Sequence], limits: Rows[int], tables: Rows[Table]) -> list[Draft]:
        drafts = [Draft([]) for _ in sequences]
        found: list[list[Tensor]] = [[] for _ in sequences]
        for step in range(max(limits, default=0)):
            active = [i for i, limit in enumerate(limits) if step < limit]
            rows = [self._row(sequences[i], drafts[i].tokens, tables[i]) for i in active]
            logits, order = self._run(rows)
            for at, i in enumerate(active[k] for k in order):
                p = self.sampler.probabilities(logits[at : at + 1], [sequences[i]])[0]
                stream = random.Random(f"draft/{sequences[i].seed}/{sequences[i].num_output}/{step}")
                drafts[i].tokens.append(_draw(p, stream))
                found[i].append(p)
        for draft, rows_of in zip(drafts, found):
            draft.probabilities = torch.stack(rows_of) if rows_of else None
        return drafts

    def _row(self, sequence: Sequence, drafted: list[int], table: Table) -> Row:
        """What the draft has not computed yet: its own last guess; at first what the model accepted beyond
        it.
        """
        tokens = [*sequence.tokens, *drafted]
        start = max(0, len(tokens) - (1 if drafted else MOST_BEHIND))
        return Row(tokens[start:], start, table)

    def _run(self, rows: Rows[Row]) -> tuple[Tensor, list[int]]:
        packed = pack(rows, self.runner.cache.block_size)
        logits = self.runner.run(packed)
        self.runner.sampled()
        self.runner.finish()
        return logits, packed.order


MOST_BEHIND = 2  # tokens: a wholly accepted draft leaves its last token and the one after it


def accept(draft: Draft, p: Tensor, stream: random.Random) -> list[int]:
    """The tokens that *draft* leads to: accepted ones, then one that is always new.

    *p* fp64 ``[len(draft.tokens) + 1, vocabulary]``: the model's distribution at each position.
    """
    tokens: list[int] = []
    for i, token in enumerate(draft.tokens):
        q = draft.probabilities[i] if draft.probabilities is not None else None
        chance = float(p[i, token]) / (float(q[token]) if q is not None else 1.0)
        if stream.random() < chance:
            tokens.append(token)
            continue
        left = p[i].clone()
        if q is None:
            left[token] = 0.0
        else:
            left = (left - q).clamp_min(0.0)
        return [*tokens, _draw(left, stream)]
    return [*tokens, _draw(p[len(draft.tokens)], stream)]


def _draw(weights: Tensor, stream: random.Random) -> int:
    """An index with probability proportional to its weight."""
    cumulative = weights.cumsum(dim=-1)
    target = stream.random() * float(cumulative[-1])
    return min(int(torch.searchsorted(cumulative, target, right=True)), len(weights) - 1)
