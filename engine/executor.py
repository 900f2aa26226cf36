"""Drives a scheduling policy with a real model on a real clock.

The policy is the very object that the simulator drives: it decides each iteration, and this executor
computes it. Up to ``scheduler.depth`` decisions are in flight: with 2 the next iteration is decided while
the device is still at the last one. What only an executor can know, the tokens and so the ends, goes back
to the policy with ``commit``. Nothing here knows any policy by name. Children that a policy forks draw their first
token from the same logits as their parent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from torch import Tensor

from engine.batch import Row, pack
from engine.content import extend_content
from engine.intake import Intake
from engine.pages import Moves, Pages
from engine.plan import Forward, Plan, Target
from engine.runner import ModelRunner
from engine.sampling import Sampler, logprobs
from engine.sequence import Sequence, TokenLogprobs
from engine.stats import Stats
from engine.tokenizer import Tokenizer
from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import SWAPPED, Request

__all__ = ["Executor"]


class Executor(Intake):
    """One model behind one scheduler. `add` requests, `step` until `has_work` is false.

    *seed* names the random streams of requests that bring no seed of their own; *eos* are the model's
    end-of-text tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        pages: Pages,
        *,
        tokenizer: Tokenizer | None = None,
        eos: frozenset[int] = frozenset(),
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if scheduler.depth > 2:
            raise ConfigurationError(
                f"depth {scheduler.depth}: the engine has at most 2 iterations in flight"
            )
        super().__init__(
            scheduler,
            pages,
            vocab_size=runner.decoder.config.vocab_size,
            block_size=runner.cache.block_size,
            tokenizer=tokenizer,
            eos=eos,
            seed=seed,
            clock=clock,
        )
        self.runner = runner
        self.sampler = Sampler(runner.decoder.kernels)
        self.idle = True
        """Whether the latest step found nothing to run."""
        self.recomputed_tokens = 0
        """Tokens that a policy without block numbers took for cached, and that were computed again."""
        self.computed: Callable[[], None] = _nothing
        """Called when the tokens of an iteration are there, before the policy is told."""
        self._in_flight: deque[Plan] = deque()
        self._held: dict[Sequence, None] = {}
        self._prefix_queries = self._prefix_hits = 0
        self._wait_until: float | None = None

    def abandon(self) -> None:
        """After a failed iteration, and once its requests are cancelled: forget what was in flight."""
        while self._in_flight:
            self.scheduler.commit(self._in_flight.popleft().batch, [], self.clock())
        self.runner.abandon()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.live or self._in_flight or self._held)

    @property
    def wait_until(self) -> float | None:
        """Where the policy waits for time alone: the time of the clock at which to step again."""
        return self._wait_until

    def stats(self) -> Stats:
        """Queues and blocks now."""
        scheduler = self.scheduler
        return Stats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            blocks_used=scheduler.blocks_used,
            num_blocks=scheduler.num_blocks,
            block_size=self.block_size,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    # one iteration

    def step(self) -> list[Sequence]:
        """Run one iteration; the sequences that got a token or ended."""
        self._fill(1)
        self.idle = not self._in_flight
        if self.idle:
            return self._hold([])
        plan = self._in_flight[0]
        self._launch(plan)
        self._fill(self.scheduler.depth)
        return self._land(plan)

    def _fill(self, depth: int) -> None:
        """Decide until *depth* iterations are in flight."""
        self._wait_until = None
        while len(self._in_flight) < depth:
            decision = self.scheduler.schedule(self.clock())
            if isinstance(decision, Wait):
                self._wait_until = decision.until
            if decision is None or isinstance(decision, Wait):
                return
            self._in_flight.append(self._plan(decision))

    def _plan(self, batch: Batch) -> Plan:
        """Note what a decision says about sequences: who lost its KV, who was admitted, who forks."""
        plan, now = Plan(batch), self.clock()
        for request in batch.preempted:
            if request.status is SWAPPED:
                self.pages.swap_out(request.payload)
            else:
                self.pages.free(request.payload)
        for request, tokens in batch.cached.items():
            self._prefix_queries += request.target
            self._prefix_hits += tokens
        for request in [*batch.cached, *(request for request, _, _ in batch.prefills)]:
            times = request.payload.times
            times.scheduled = now if times.scheduled is None else times.scheduled
        for request in batch.joining:
            if request not in self.live and request.payload.request is not request:
                parent = request.payload
                plan.children.setdefault(parent, []).append(self._child(parent, request))
        for request, reason in batch.rejected:
            for sequence in list(request.payload.group):
                plan.dropped += self._drop(sequence, reason)
        for request, reason in batch.failed:
            plan.dropped += self._drop(request.payload, reason)
        return plan

    def _launch(self, plan: Plan) -> None:
        """Build the rows, move blocks, start the device; nothing here waits for it."""
        plan.forwards = self._forwards(plan)
        self._move(self.pages.take_moves())
        for parent, children in plan.children.items():
            for child in children:
                if not (parent.finished or child.finished):
                    self.pages.fork(parent, child)
        for forward in plan.forwards:
            if forward.rows:
                self._start(forward)

    def _move(self, moves: Moves) -> None:
        if moves:
            self.runner.move(moves)

    def _forwards(self, plan: Plan) -> list[Forward]:
        """The rows of every forward; a prompt that several of them share draws its token in the last."""
        parts, joining = plan.batch.forwards or [plan.batch], plan.batch.joining
        last = {request: i for i, part in enumerate(parts) for request, _, _ in part.prefills}
        return [
            self._rows(part, plan, {request for request in joining if last.get(request) == i})
            for i, part in enumerate(parts)
        ]

    def _rows(self, batch: Batch, plan: Plan, joining: set[Request]) -> Forward:
        """The rows of one forward; *joining* get a token from it. Who has ended meanwhile is left out."""
        forward = Forward()
        for request in batch.decodes or ():
            sequence = request.payload
            count = len(sequence.tokens)
            self._row(forward, sequence, count - 1, count, [sequence])
        for request, chunk, context in batch.prefills:
            sequence = request.payload
            drawing = [sequence, *plan.children.get(sequence, ())] if request in joining else []
            self._row(forward, sequence, context, context + chunk, drawing)
        self._idle_rows(forward, batch)
        return forward

    def _idle_rows(self, forward: Forward, batch: Batch) -> None:
        """What a static batch computes for nothing: rows of ended sequences, and prompts padded to the longest."""
        if not forward.rows or not (batch.idle_rows or batch.padded_tokens):
            return
        longest = max(forward.rows, key=lambda row: len(row.tokens))
        short = [len(longest.tokens) - len(row.tokens) for row in forward.rows] if batch.padded_tokens else []
        padding = [Row([0] * count, 0, longest.blocks, 0, idle=True) for count in short if count]
        ended = Row(longest.tokens[-1:], longest.start, longest.blocks, 0, idle=True)
        forward.rows += padding + [ended] * batch.idle_rows
        forward.targets += [None] * (len(forward.rows) - len(forward.targets))

    def _row(
        self, forward: Forward, sequence: Sequence, start: int, stop: int, drawing: list[Sequence]
    ) -> None:
        if sequence.finished:
            return
        kept = self.pages.kept(sequence, start)
        self.recomputed_tokens += start - kept
        blocks = self.pages.table(sequence, kept, stop)
        forward.rows.append(Row(sequence.tokens[kept:stop], kept, blocks, int(bool(drawing))))
        forward.targets.append(Target(drawing, stop) if drawing else None)

    def _start(self, forward: Forward) -> None:
        packed = pack(forward.rows, self.block_size)
        logits = self.runner.run(packed)
        self._draw(forward, logits, packed.order)
        self.runner.sampled()

    def _draw(self, forward: Forward, logits: Tensor, order: list[int]) -> None:
        """Queue the drawing of a token for every row that is to give one; *order* are the rows of
        *logits*.
        """
        targets = [target for i in order if (target := forward.targets[i]) is not None]
        if any(len(target.sequences) > 1 for target in targets):
            logits = logits[[i for i, target in enumerate(targets) for _ in target.sequences]]
        forward.sampled = [(sequence, target.stop) for target in targets for sequence in target.sequences]
        if forward.sampled:
            forward.tokens = self.sampler.sample(logits, [sequence for sequence, _ in forward.sampled])
        forward.logits = logits

    def _land(self, plan: Plan) -> list[Sequence]:
        """Wait for the tokens, hand them out, tell the policy who has ended."""
        touched = plan.dropped
        for forward in plan.forwards:
            touched += self._deliver(forward)
            if forward.rows:
                self.runner.finish()
        if any(part.num_decodes or part.prefills for part in plan.batch.forwards or [plan.batch]):
            self.computed()  # a decision that only preempts or refuses runs nothing
        ended = [s.request for s in touched if s.finished and s.request in self.live]
        self._in_flight.popleft()
        self.scheduler.commit(plan.batch, ended, self.clock())
        for request in ended:
            self.pages.free(self.live.pop(request))
        return touched if self.scheduler.delivery == "step" else self._hold(touched)

    def _hold(self, touched: list[Sequence]) -> list[Sequence]:
        """A static batch hands out all its tokens when its last sequence has ended."""
        self._held.update(dict.fromkeys(touched))
        if self.scheduler.num_running or not self._held:
            return []
        held, now = [s for s in self._held if s.finish_reason != "abort"], self.clock()
        self._held.clear()
        for sequence in held:
            if sequence.num_output:
                sequence.times.first_token = sequence.times.last_token = now
        return held

    def _deliver(self, forward: Forward) -> list[Sequence]:
        if forward.tokens is None or forward.logits is None:
            return []
        tokens = forward.tokens.tolist()
        now = self.clock()
        sequences = [sequence for sequence, _ in forward.sampled]
        probabilities = logprobs(forward.logits, sequences, tokens)
        touched = []
        for (sequence, stop), token, logprob in zip(forward.sampled, tokens, probabilities):
            # Cancelled while the device was at it, or a token drawn again that a policy threw away in flight.
            if sequence.finished or len(sequence.tokens) > stop:
                continue
            self._append(sequence, token, logprob, now)
            touched.append(sequence)
        return touched

    def _append(self, sequence: Sequence, token: int, logprob: TokenLogprobs | None, now: float) -> None:
        sequence.append(token, logprob, now)
        extend_content(sequence.content, sequence.tokens, self.block_size)

    def _drop(self, sequence: Sequence, error: str) -> list[Sequence]:
        """The policy will not run *sequence*, for the reason that it gives."""
        if self.live.pop(sequence.request, None) is None:
            return []
        self.pages.free(sequence)
        sequence.finish("error", error=error)
        return [sequence]


def _nothing() -> None:
    pass
