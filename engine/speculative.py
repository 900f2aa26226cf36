"""Speculative decoding: guess several tokens cheaply, check them in one pass of the model.

A proposer drafts *k* tokens; the model computes all of them at once; each is accepted with probability
min(1, p / q) and the first refused one is drawn again from what is left of p, so that the text has the
model's own distribution whatever the draft (Leviathan et al. 2023, theorem 1; Chen et al. 2023). A draft
without a distribution (n-grams of the prompt) has q = 1 for its token.

A policy grants one token an iteration, and keeps it so: the accepted tokens wait in a queue and are handed
out one an iteration without any computing. Their KV, where it reaches beyond the granted blocks, lies in
*scratch* pages behind the scheduler's own, and moves into the granted block as soon as there is one. So
every policy can be run with speculation, and none knows.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.batch import Row, pack
from engine.executor import Executor, Forward, Plan, Target
from engine.pages import Moves, Table
from engine.runner import ModelRunner
from engine.sampling import Sampler, logprobs
from engine.sequence import Sequence, TokenLogprobs
from simulator.scheduling.base import Batch
from simulator.scheduling.request import RUNNING

__all__ = ["Draft", "DraftModel", "NgramProposer", "SpeculativeExecutor", "accept"]


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


@dataclass
class Ahead:
    """What a sequence has beyond what its policy knows: tokens to hand out, and pages by block index."""

    tokens: deque[tuple[int, TokenLogprobs | None]] = field(default_factory=deque)
    pages: dict[int, int] = field(default_factory=dict)


@dataclass
class SpeculativeForward(Forward):
    """A forward pass with *drafts* to check, by row, and *waiting*: sequences whose next token is known
    already.
    """

    drafts: dict[int, tuple[Sequence, Draft]] = field(default_factory=dict)
    waiting: list[Sequence] = field(default_factory=list)
    checks: list[tuple[Sequence, Draft, Tensor]] = field(default_factory=list)


class SpeculativeExecutor(Executor):
    """An executor that drafts *num_tokens* with *proposer*. The cache has *num_scratch* pages behind the
    scheduler's blocks.
    """

    def __init__(
        self,
        *args: Any,
        proposer: Proposer,
        num_tokens: int,
        first_scratch: int,
        num_scratch: int,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.proposer, self.num_tokens = proposer, num_tokens
        self.num_drafted = self.num_accepted = 0
        self._scratch = list(range(first_scratch + num_scratch - 1, first_scratch - 1, -1))
        self._ahead: dict[Sequence, Ahead] = {}
        self._max_len = self.runner.decoder.rotation.shape[0]

    def _launch(self, plan: Plan) -> None:
        self._drop_ended(plan.batch)
        moves = []
        for part in plan.batch.forwards or [plan.batch]:
            for request in part.decodes or ():
                moves += self._settle(request.payload)
        taken = self.pages.take_moves()
        taken.copies += moves
        self._move(taken)
        super()._launch(plan)

    def _move(self, moves: Moves) -> None:
        super()._move(moves)
        if moves:
            self.proposer.moved(moves)

    def _land(self, plan: Plan) -> list[Sequence]:
        touched = super()._land(plan)
        self._drop_ended(plan.batch)
        return touched

    def _drop_ended(self, batch: Batch) -> None:
        """Forget the future of who has none: ended, cancelled, or preempted."""
        lost = {request.payload for request in batch.preempted if request.status != RUNNING}
        for sequence in [s for s in self._ahead if s.finished or s in lost]:
            self._release(self._ahead.pop(sequence))

    def _release(self, ahead: Ahead) -> None:
        self._scratch.extend(ahead.pages.values())
        ahead.pages.clear()

    def _settle(self, sequence: Sequence) -> list[tuple[int, int]]:
        """Blocks granted meanwhile take over from scratch pages: copies to make."""
        ahead = self._ahead.get(sequence)
        if ahead is None or not ahead.pages or sequence.finished:
            return []
        count = len(sequence.tokens)
        table = self.pages.table(sequence, count - 1, count)
        ready = [index for index in ahead.pages if index < len(table)]
        copies = [(ahead.pages[index], int(table[index])) for index in ready]
        # Nothing is written into a page given back before these copies have run: both are on one stream.
        self._scratch.extend(ahead.pages.pop(index) for index in ready)
        return copies

    def _rows(self, batch: Batch, plan: Plan) -> Forward:
        forward = SpeculativeForward()
        self._draft_rows(forward, [r.payload for r in batch.decodes or () if not r.payload.finished])
        prompts = len(forward.rows)
        joining = set(batch.joining)
        for request, chunk, context in batch.prefills:
            sequence = request.payload
            drawing = [sequence, *plan.children.get(sequence, ())] if request in joining else []
            self._row(forward, sequence, context, context + chunk, drawing)
        if len(forward.rows) > prompts:
            self.proposer.computed(forward.rows[prompts:])
        return forward

    def _draft_rows(self, forward: SpeculativeForward, sequences: list[Sequence]) -> None:
        asking: list[Sequence] = []
        for sequence in sequences:
            ahead = self._ahead.setdefault(sequence, Ahead())
            (forward.waiting if ahead.tokens else asking).append(sequence)
        limits = [self._limit(sequence) for sequence in asking]
        tables = [self._table(sequence, limit) for sequence, limit in zip(asking, limits)]
        drafts = self.proposer.propose(asking, limits, tables)
        for sequence, draft, table in zip(asking, drafts, tables):
            start = len(sequence.tokens) - 1
            tokens = [sequence.tokens[-1], *draft.tokens]
            self.num_drafted += len(draft.tokens)
            forward.drafts[len(forward.rows)] = sequence, draft
            forward.rows.append(Row(tokens, start, table, len(tokens)))
            forward.targets.append(Target([sequence], start + 1))

    def _limit(self, sequence: Sequence) -> int:
        """Tokens worth drafting: penalties change with every token, and behind the last token nothing
        counts.
        """
        if sequence.params.penalised:
            return 0
        left = sequence.request.max_tokens - sequence.num_output - 1
        return max(0, min(self.num_tokens, left, self._max_len - len(sequence.tokens)))

    def _table(self, sequence: Sequence, drafted: int) -> Table:
        """The granted blocks and, behind them, scratch pages for *drafted* tokens more."""
        count = len(sequence.tokens)
        table = self.pages.table(sequence, count - 1, count)
        pages = self._ahead[sequence].pages
        for index in range(len(table), -(-(count + drafted) // self.block_size)):
            if index not in pages:
                pages[index] = self._scratch.pop()
        return np.concatenate((table, np.array([pages[i] for i in sorted(pages)], dtype=np.int32)))

    def _draw(self, forward: Forward, logits: Tensor, order: list[int]) -> None:
        assert isinstance(forward, SpeculativeForward)
        plain: list[int] = []
        offset = 0
        for i in order:
            count = forward.rows[i].num_logits
            if i in forward.drafts:
                sequence, draft = forward.drafts[i]
                forward.checks.append((sequence, draft, logits[offset : offset + count]))
            else:
                plain += range(offset, offset + count)
            offset += count
        rest = [i for i in order if i not in forward.drafts]
        super()._draw(forward, logits[plain], rest)

    def _deliver(self, forward: Forward) -> list[Sequence]:
        assert isinstance(forward, SpeculativeForward)
        touched = super()._deliver(forward)
        for sequence, draft, logits in forward.checks:
            if not sequence.finished:
                self._verify(sequence, draft, logits)
                forward.waiting.append(sequence)
        now = self.clock()
        for sequence in forward.waiting:
            if not sequence.finished:
                token, logprob = self._ahead[sequence].tokens.popleft()
                self._append(sequence, token, logprob, now)
                touched.append(sequence)
        return touched

    def _verify(self, sequence: Sequence, draft: Draft, logits: Tensor) -> None:
        rows = [sequence] * len(logits)
        p = self.sampler.probabilities(logits, rows)
        tokens = accept(draft, p, random.Random(f"accept/{sequence.seed}/{sequence.num_output}"))
        self.num_accepted += len(tokens) - 1
        entries = logprobs(logits[: len(tokens)], rows[: len(tokens)], tokens)
        self._ahead[sequence].tokens.extend(zip(tokens, entries))
