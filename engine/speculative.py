"""Speculative decoding: guess several tokens cheaply, check them in one pass of the model (`engine.drafting`).

A policy grants one token an iteration, and keeps it so: the accepted tokens wait in a queue and are handed out one
an iteration without any computing. Their KV, where it reaches beyond the granted blocks, lies in *scratch* pages
behind the scheduler's own, and moves into the granted block as soon as there is one. So every policy can be run with
speculation, and none knows.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from engine.batch import Row
from engine.drafting import Draft, Proposer, accept
from engine.executor import Executor
from engine.pages import Moves, Table
from engine.plan import Forward, Plan, Target
from engine.sampling import logprobs
from engine.sequence import Sequence, TokenLogprobs
from simulator.scheduling.base import Batch
from simulator.scheduling.request import RUNNING, Request

__all__ = ["SpeculativeExecutor"]


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

    def _rows(self, batch: Batch, plan: Plan, joining: set[Request]) -> Forward:
        forward = SpeculativeForward()
        self._draft_rows(forward, [r.payload for r in batch.decodes or () if not r.payload.finished])
        prompts = len(forward.rows)
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
