"""Drives a scheduling policy with a real model on a real clock.

The policy is the very object that the simulator drives: it decides each iteration, and this executor
computes it. Up to ``scheduler.depth`` decisions are in flight: with 2 the next iteration is decided while
the device is still at the last one. What only an executor can know, the tokens and so the ends, goes back
to the policy with ``commit``. Nothing here knows any policy by name.

What a policy must tell beside the batch's rows, in ``batch.notes``: ``copies`` ``[(from, to)]`` for
copy-on-write, ``swap_out`` ``[(device, host)]`` and ``swap_in`` ``[(host, device)]``, all block numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from engine.batch import BatchInput, Row, pack
from engine.cache import Pairs
from engine.content import extend_content
from engine.pages import make_pages
from engine.params import SamplingParams
from engine.runner import ModelRunner
from engine.sampling import Sampler, logprobs
from engine.sequence import Sequence, Times, make_detokenizer
from engine.tokenizer import Tokenizer
from simulator.errors import CapacityError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import SWAPPED, Request

__all__ = ["Executor", "Stats"]


@dataclass(frozen=True)
class Stats:
    """The executor at this moment."""

    num_running: int
    num_waiting: int
    blocks_used: int
    num_blocks: int
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int


@dataclass
class Plan:
    """A decided iteration: its rows, the sequences of these, and who gets a token from it."""

    batch: Batch
    rows: list[Row]
    sequences: list[Sequence]


class Executor:
    """One model behind one scheduler. `add` requests, `step` until `has_work` is false.

    *seed* names the random streams of requests that bring no seed of their own; *eos* are the model's
    end-of-text tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        *,
        tokenizer: Tokenizer | None = None,
        eos: frozenset[int] = frozenset(),
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.runner, self.scheduler, self.tokenizer, self.eos = runner, scheduler, tokenizer, eos
        self.seed, self.clock = seed, clock
        self.block_size = runner.cache.block_size
        self.vocab_size = runner.decoder.config.vocab_size
        self.sampler = Sampler(runner.decoder.kernels)
        self.pages = make_pages(scheduler, runner.cache.num_blocks, self.block_size)
        self.live: dict[Request, Sequence] = {}
        self.recomputed_tokens = 0
        """Tokens that a policy without block numbers took for cached, and that were computed again."""
        self._in_flight: deque[Plan] = deque()
        self._num_added = 0
        self._prefix_queries = self._prefix_hits = 0
        self._wait_until: float | None = None

    # requests

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str | None = None,
        arrival_time: float | None = None,
    ) -> list[Sequence]:
        """Queue a prompt; one sequence for each of the *n* samples.

        Raises CapacityError where it can never run; then none of the samples was queued.
        """
        if not prompt:
            raise CapacityError("an empty prompt: at least one token is needed to continue from")
        if (largest := max(prompt)) >= self.vocab_size or min(prompt) < 0:
            raise CapacityError(f"token id {largest}: must be between 0 and {self.vocab_size - 1}")
        now = self.clock()
        name = request_id if request_id is not None else f"r{self._num_added}"
        samples: list[Sequence] = []
        for k in range(params.n):
            sample = self._sequence(
                prompt, params, name if params.n == 1 else f"{name}/{k}", k, arrival_time or now
            )
            try:
                self.scheduler.add(sample.request, now)
            except CapacityError:
                for earlier in samples:
                    self.cancel(earlier)
                raise
            self.live[sample.request] = sample
            samples.append(sample)
        return samples

    def _sequence(
        self, prompt: list[int], params: SamplingParams, name: str, sample: int, arrival: float
    ) -> Sequence:
        index = self._num_added
        self._num_added += 1
        content: list[tuple[int, int]] = []
        extend_content(content, prompt, self.block_size)
        request = Request(
            name,
            len(prompt),
            params.max_tokens,
            arrival_time=arrival,
            index=index,
            priority=params.priority,
            content=content,
            ignore_eos=params.ignore_eos,
        )
        given = params.seed
        seed = (
            _mix(f"{self.seed}/{index}") if given is None else _mix(f"{given}/{sample}") if sample else given
        )
        sequence = Sequence(
            request,
            prompt,
            params,
            seed,
            Times(arrival),
            self.eos,
            detokenizer=make_detokenizer(self.tokenizer),
        )
        request.payload = sequence
        return sequence

    def cancel(self, sequence: Sequence, reason: str = "abort") -> None:
        """Drop *sequence* wherever it is; its blocks are free when this returns."""
        if self.live.pop(sequence.request, None) is None:
            return
        self.scheduler.cancel(sequence.request, self.clock())
        self.pages.free(sequence)
        sequence.finish(reason)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.live or self._in_flight)

    @property
    def wait_until(self) -> float | None:
        """Where the policy waits for time alone: the time of the clock at which to step again."""
        return self._wait_until

    def stats(self) -> Stats:
        """Queues and blocks now; prefix cache counts are tokens since the start."""
        scheduler = self.scheduler
        return Stats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            blocks_used=scheduler.blocks_used,
            num_blocks=scheduler.num_blocks,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    # one iteration

    def step(self) -> list[Sequence]:
        """Run one iteration; the sequences that got a token or ended, none where there was nothing to run."""
        self._fill(1)
        if not self._in_flight:
            return []
        plan = self._in_flight[0]
        running = self._launch(plan)
        self._fill(self.scheduler.depth)
        self._in_flight.popleft()
        return self._land(plan, running)

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
        now = self.clock()
        for request in batch.preempted:
            if request.status is not SWAPPED:
                self.pages.free(request.payload)
        for request, tokens in batch.cached.items():
            self._prefix_queries += request.target
            self._prefix_hits += tokens
        plan = Plan(batch, [], [])
        for request, _, _ in batch.prefills:
            times = request.payload.times
            times.scheduled = times.scheduled or now
        return plan

    def _launch(self, plan: Plan) -> Running:
        """Move blocks, build the rows, start the device; nothing here waits for it."""
        batch = plan.batch
        notes = batch.notes or {}
        moves: list[Pairs] = [notes.get(name, ()) for name in ("swap_out", "swap_in", "copies")]  # type: ignore[misc]
        self.runner.move(*moves)
        moved = any(moves)
        forwards = [self._rows(part, moved) for part in batch.forwards or [batch]]
        return Running([self._start(rows, sequences) for rows, sequences in forwards if rows])

    def _rows(self, batch: Batch, moved: bool) -> tuple[list[Row], list[Sequence]]:
        """The rows of one forward, and for each its sequence. Who has ended meanwhile is left out."""
        rows: list[Row] = []
        sequences: list[Sequence] = []
        for request in batch.decodes or ():
            sequence = request.payload
            if not sequence.finished:
                rows.append(self._row(sequence, len(sequence.tokens) - 1, len(sequence.tokens), True, moved))
                sequences.append(sequence)
        joining = set(batch.joining)
        for request, chunk, context in batch.prefills:
            sequence = request.payload
            if not sequence.finished:
                rows.append(self._row(sequence, context, context + chunk, request in joining, moved))
                sequences.append(sequence)
        return rows, sequences

    def _row(self, sequence: Sequence, start: int, stop: int, sampled: bool, moved: bool) -> Row:
        kept = self.pages.kept(sequence, start)
        self.recomputed_tokens += start - kept
        blocks = self.pages.table(sequence, stop, moved=moved)
        return Row(sequence.tokens[kept:stop], kept, blocks, int(sampled))

    def _start(self, rows: list[Row], sequences: list[Sequence]) -> Forward:
        packed = pack(rows, self.block_size)
        logits = self.runner.run(packed)
        sampled = [sequences[i] for i in packed.order if rows[i].num_logits]
        tokens = self.sampler.sample(logits, sampled) if sampled else None
        self.runner.sampled()
        return Forward(packed, logits, sampled, tokens)

    def _land(self, plan: Plan, running: Running) -> list[Sequence]:
        """Wait for the tokens, hand them out, tell the policy who has ended."""
        touched: list[Sequence] = []
        for forward in running.forwards:
            touched += self._deliver(forward)
            self.runner.finish()
        batch = plan.batch
        for request, reason in batch.rejected:
            touched.append(self._drop(request, "error", reason))
        ended = [s.request for s in touched if s.finished and s.request in self.live]
        self.scheduler.commit(batch, ended, self.clock())
        for request in ended:
            self.pages.free(self.live.pop(request))
        return touched

    def _deliver(self, forward: Forward) -> list[Sequence]:
        if forward.tokens is None:
            return []
        tokens = forward.tokens.tolist()
        now = self.clock()
        probabilities = logprobs(forward.logits, forward.sampled, tokens)
        touched = []
        for sequence, token, logprob in zip(forward.sampled, tokens, probabilities):
            if sequence.finished:  # cancelled while the device was at it
                continue
            sequence.append(token, logprob, now)
            extend_content(sequence.request.content, sequence.tokens, self.block_size)  # type: ignore[arg-type]
            touched.append(sequence)
        return touched

    def _drop(self, request: Request, reason: str, error: str | None = None) -> Sequence:
        sequence = self.live.pop(request)
        self.pages.free(sequence)
        sequence.finish(reason, error=error)
        return sequence


@dataclass
class Forward:
    """One forward pass under way: *sampled* are the sequences of its logit rows."""

    packed: BatchInput
    logits: Tensor
    sampled: list[Sequence]
    tokens: Tensor | None


@dataclass
class Running:
    """The forwards of an iteration under way."""

    forwards: list[Forward]


def _mix(text: str) -> int:
    """A 62-bit seed from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
