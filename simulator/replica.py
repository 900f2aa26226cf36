"""One replica: a scheduling policy on a predicted clock.

The replica asks its policy for an iteration, asks the step-time model how long it takes, sleeps that long
on the SimPy clock and tells the policy what came of it. What a real executor learns from its sampler, where
an answer ends, is read here from the trace.

Between two decisions a decoding batch repeats itself. The replica asks the policy how often it would, and takes
the least of that, the next end (a heap of iteration counts) and the next arrival; the durations are evaluated
together and the clock moves once. `Replica(stepped=True)` takes every iteration by itself, for comparison.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import simpy

from simulator.compiled.attributes import mypyc_attr
from simulator.errors import CapacityError
from simulator.injection import OpenLoop
from simulator.results import (
    FAILED,
    FINISHED,
    REJECTED,
    RUNNING,
    WAITING,
    InterTokenLatency,
    RecordsBuilder,
    StepSeries,
)
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import FINISHED as ENDED
from simulator.scheduling.request import Request
from simulator.scheduling.speculative import DraftCounts, SpeculativeDecodeSet
from simulator.steptime import StepTime

__all__ = ["Replica", "pooled_drafts"]

ARRIVAL_TOLERANCE = 1e-9
"""Relative. An arrival this close after the end of an iteration counts as before it."""
RUN_AHEAD = 64
"""Decisions that a replica with its own arrivals takes before it lets the SimPy clock catch up."""
WITH_FIRST = -2
"""``decode_end`` of a sequence whose next token, the one its last prompt chunk yields, is its last."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Replica:
    """A scheduler, its step times and what it leaves in the records.

    *source* yields the arrivals of this replica; *outputs* is the number of output tokens of each request.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: Scheduler,
        steptime: StepTime,
        source: OpenLoop,
        outputs: Any,
        records: RecordsBuilder,
        *,
        index: int = 0,
        stepped: bool = False,
        open: bool = False,
        horizon: float = math.inf,
    ) -> None:
        self.env = env
        self.scheduler = scheduler
        self.steptime = steptime
        self.source = source
        self.outputs = outputs
        self.records = records
        self.index = index
        decoding = scheduler.decoding
        self.drafts = decoding if isinstance(decoding, SpeculativeDecodeSet) else None
        """The decoding set that knows what is accepted, where there is speculation: then no two steps are alike."""
        self.stepped = stepped or self.drafts is not None
        self.horizon = horizon
        """When the run is cut off, s: beyond it nothing may be done before its time."""
        self.open = open
        """Whether requests may be delivered at any time, so that what the source knows now is not all."""
        self.itl = InterTokenLatency()
        self.series = StepSeries(
            num_gpu_blocks=scheduler.num_blocks, block_size=scheduler.decoding.block_size, replica=index
        )
        self._ends: list[tuple[int, int, Request]] = []
        self._num_ends = 0
        self._inflight: deque[Batch] = deque()
        self._live = 0  # sequences that have a first token and more to come
        self._fresh: dict[Request, float] = {}  # joined since the last decode iteration, and when
        self._last_decode = 0.0
        self._lagging: dict[Request, float] = {}  # missed an iteration, and their last token's time
        self._since: dict[Request, float] = {}  # preempted sequences, and their last token's time
        self._siblings: dict[int, int] = {}  # samples of a request that still run
        self._undelivered: list[Request] | None = [] if scheduler.delivery == "batch" else None
        self._quiet = scheduler.quiet
        self._wake: simpy.Event | None = None
        self._sleeping = False
        self._asleep: tuple[Batch, Any, float, int] | None = None
        # the batch slept through, its durations, and the end (s) and number of the iterations that the policy counted
        self.dead = False
        self.process = env.process(self._live_or_die() if open else self._run())

    # the clock

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env, scheduler, source, inflight = self.env, self.scheduler, self.source, self._inflight
        schedule, levels, depth, timeout = scheduler.schedule, scheduler.levels, scheduler.depth, env.timeout
        step_seconds, stepped, note = self.steptime.seconds, self.stepped, self.series.append
        gains = None if self.drafts is None else self.drafts.gains
        now, ahead = env.now, 0
        while True:
            if source.next_time <= now + ARRIVAL_TOLERANCE * now:
                self._receive(now)
            batch: Batch | Wait | None = None
            while len(inflight) < depth:
                batch = schedule(now)
                if batch is None or isinstance(batch, Wait):
                    break
                if not batch.repeatable:
                    self._begin(batch, now)
                inflight.append(batch)
            if not inflight:
                self._note_idle(now)
                until = min(batch.until, source.next_time) if isinstance(batch, Wait) else source.next_time
                if until == math.inf and not self.open:
                    return
                yield from self._rest(until - env.now)
                now = env.now if self.open else until
                continue
            batch = inflight.popleft()
            level = levels()
            decodes, prefills, n = batch.num_decodes, batch.prefills, 1
            if batch.repeatable:
                seconds = step_seconds(decodes, batch.decode_context)
                if not stepped and (not inflight or inflight[-1].num_decodes == decodes):
                    n = self._repeats(batch, seconds, now)
            elif (
                prefills
                and batch.forwards is None
                and not (
                    batch.padded_tokens
                    or batch.blocks_swapped_in
                    or batch.adapters_loaded
                    or batch.blocks_swapped_out
                    or batch.blocks_copied
                )
            ):
                seconds = step_seconds(
                    decodes, batch.decode_context, [(chunk, context) for _, chunk, context in prefills]
                )
            else:
                seconds = self._step_seconds(batch)
            if n > 1:
                durations = self._durations(batch, now, n)
                if self.open:
                    durations = yield from self._sleep(batch, durations)
                else:
                    self._advance(batch, len(durations) - 1)
                seconds, n = math.fsum(_floats(durations)), len(durations)
                if n > 1:  # a delivery may have ended the sleep with its first iteration
                    self._note_gaps(batch, durations, now)
                    level = _halfway(level, levels())
            elif self.open:
                yield timeout(seconds)
            chunks = 0
            if prefills:
                for _, chunk, _ in prefills:
                    chunks += chunk
            delivered = n * (decodes - batch.idle_rows)
            if gains is not None:
                delivered = gains.pop(batch.iteration) if decodes else 0
            elif decodes and self._undelivered is None:
                delivered = n * self._owed(batch)
            waiting, used, cached, reserved, internal, external, shared = level
            note(
                now,
                seconds,
                n,
                decodes + len(prefills),
                waiting,
                decodes,
                chunks,
                delivered + len(batch.joining),
                used,
                cached,
                len(batch.preempted),
                reserved,
                internal,
                external,
                shared,
            )
            now += seconds
            ahead += 1
            if not self.open and (ahead > RUN_AHEAD or now > self.horizon):
                # Nobody can tell this replica anything it does not know: it may run ahead of the clock.
                ahead = 0
                yield timeout(now - env.now)
            self._complete(batch, now)

    def _owed(self, batch: Batch) -> int:
        """Sequences that get a token from a decode iteration of *batch*: one that ended after it was decided has a row
        in it, and nothing to come."""
        owed = self._live - len(batch.stalled)
        for request in batch.suspended:
            if request not in self._since and request.status != ENDED:
                owed -= 1
        return owed

    def _rest(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Idle for *seconds*, or until a request is delivered."""
        if not self.open:
            yield self.env.timeout(seconds)
            return
        self._wake = self.env.event()
        yield self._wake if seconds == math.inf else self._wake | self.env.timeout(seconds)
        self._wake = None

    def _sleep(self, batch: Batch, durations: Any) -> Generator[simpy.Event, Any, Any]:
        """Sleep through iterations; a delivery ends the sleep with the iteration it falls into."""
        env, start = self.env, self.env.now
        self._asleep = batch, durations, start, 0
        self._sleeping = True
        woken = False
        try:
            yield env.timeout(math.fsum(durations))
        except simpy.Interrupt:
            if self.dead:
                raise
            woken = True  # what follows yields again, which a compiled generator must not do while it handles this
        if woken:
            elapsed, end, n = env.now - start, 0.0, 0
            while end < elapsed:
                end += float(durations[n])
                n += 1
            durations = durations[: max(n, 1)]
            self._sleeping = False
            yield env.timeout(max(start + math.fsum(durations) - env.now, 0.0))
        self._sleeping = False
        self._advance(batch, len(durations) - 1 - self._asleep[3])
        self._asleep = None
        return durations

    def catch_up(self) -> None:
        """Bring the policy's state to this moment: what it would be if the iterations ended one by one."""
        if self._asleep is None:
            return
        batch, durations, end, done = self._asleep
        before, last, now = done, len(durations) - 1, self.env.now
        while done < last and end + durations[done] <= now:
            end += float(durations[done])
            done += 1
        if done > before:
            self._advance(batch, done - before)
            self._asleep = batch, durations, end, done

    def die(self) -> None:
        """Stop in the middle of whatever it does. What it held is the caller's to see to."""
        self.dead = True
        self.process.interrupt()

    def _live_or_die(self) -> Generator[simpy.Event, Any, None]:
        try:
            yield from self._run()
        except simpy.Interrupt:
            if not self.dead:
                raise

    def deliver(self) -> None:
        """Something was put into the source of an open replica: see to it at the next end of an iteration."""
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()
        elif self._sleeping:
            self._sleeping = False
            self.process.interrupt()

    def _repeats(self, batch: Batch, seconds: float, now: float) -> int:
        """For how many iterations *batch* repeats, given that the first lasts *seconds* and none is shorter."""
        ends, inflight = self._ends, self._inflight
        while ends and ends[0][2].ticket != ends[0][1]:  # overtaken by a preemption or a missed turn
            heapq.heappop(ends)
        limit = ends[0][0] - batch.iteration + 1 if ends else 1
        room = self.source.next_time - now
        if room < limit * seconds:
            limit = int(room / seconds) + 1
        if limit <= 1:
            return 1
        if not inflight:
            return self.scheduler.repeats(batch, limit)
        following = inflight[-1]  # decided before this one ends: it must be the same, one token on
        return self.scheduler.repeats(following, limit) if following.repeatable else 1

    def _durations(self, batch: Batch, now: float, n: int) -> Any:
        """Seconds of *n* iterations of *batch*, or of fewer if an arrival comes in between."""
        durations = self.steptime.segment(batch.num_decodes, batch.decode_context, n)
        next_time = self.source.next_time
        if next_time == math.inf:
            return durations
        return durations[: self._until_arrival(durations, now, n)]

    def _until_arrival(self, durations: Any, now: float, n: int) -> int:
        """How many of *durations* until the first end of an iteration at or after the next arrival."""
        next_time, end = self.source.next_time, now
        for i, seconds in enumerate(_floats(durations), 1):
            end += seconds
            if next_time <= end + ARRIVAL_TOLERANCE * end:
                return i
        return n

    def _advance(self, batch: Batch, n: int) -> None:
        inflight = self._inflight
        if inflight:
            self.scheduler.advance(inflight[-1], n)
            batch.iteration += n
            batch.decode_context += n * batch.num_decodes
        else:
            self.scheduler.advance(batch, n)

    def _step_seconds(self, batch: Batch) -> float:
        return self._forward_seconds(batch) + self.scheduler.transfer_seconds(batch)

    def _forward_seconds(self, batch: Batch) -> float:
        if batch.forwards is not None:
            return math.fsum(self._forward_seconds(forward) for forward in batch.forwards)
        if not batch.prefills:  # a decision that only preempts or refuses runs nothing
            return (
                self.steptime.seconds(batch.num_decodes, batch.decode_context) if batch.num_decodes else 0.0
            )
        chunks = [(chunk, context) for _, chunk, context in batch.prefills]
        if batch.padded_tokens:  # a rectangle: every prompt is computed at the length of the longest
            chunks = [max(chunks)] * len(chunks)
        return self.steptime.seconds(batch.num_decodes, batch.decode_context, chunks)

    # requests

    def _receive(self, now: float) -> None:
        source, records = self.source, self.records
        latest = now + ARRIVAL_TOLERANCE * now
        while source.next_time <= latest:
            request = source.pop()
            i = request.index
            records.arrival_time[i] = request.arrival_time
            records.input_length[i] = request.prompt_length
            records.replica[i] = self.index
            records.status[i] = WAITING
            if (
                request.ready and request.n == 1
            ):  # the gap to its second token began with the first, elsewhere
                self._since[request] = records.first_token_time[i]
            try:
                if request.n == 1:
                    self.scheduler.add(request, now)
                else:
                    self._admit_samples(request, now)
            except CapacityError as error:
                self._reject(request, str(error), now)

    def _admit_samples(self, request: Request, now: float) -> None:
        if self.scheduler.forks:
            self.scheduler.add(request, now)
            self._siblings[request.index] = request.n
            return
        for sample in range(request.n):  # the front end sends one sequence per sample; they share the prompt
            child = Request(
                f"{request.id}-{sample}",
                request.prompt_length,
                request.max_tokens,
                arrival_time=request.arrival_time,
                index=request.index,
                priority=request.priority,
                content=request.content or ((_own_content(request.index), request.prompt_length),),
                adapter=request.adapter,
            )
            if request.ready:  # the KV of the prompt came once for all samples, and each has its first token
                child.ready, child.generated, child.target = request.ready, request.generated, request.target
                self._since[child] = self.records.first_token_time[request.index]
            self.scheduler.add(child, now)
        self._siblings[request.index] = request.n

    def _reject(self, request: Request, reason: str, now: float) -> None:
        self.records.leave(request.index, REJECTED, reason, now)
        self.source.completed(request.index, now)

    def _begin(self, batch: Batch, now: float) -> None:
        """*batch* was decided: note who was scheduled, and when each sequence will end."""
        records = self.records
        status, first = records.status, records.first_scheduled_time
        for request in batch.cached:
            i = request.index
            if status[i] == WAITING:
                status[i] = RUNNING
                if first[i] != first[i]:
                    first[i] = now
                    records.cached_tokens[i] = request.cached_tokens
                else:
                    records.note(now, i, "SCHEDULED")
        for request, reason in batch.rejected:
            self._reject(request, reason, now)
        for request, reason in batch.failed:
            self._fail(request, reason, now)
        for request in batch.joining:
            left = self._length(request) - request.generated
            if left > 0:
                steps = left if self.drafts is None else self.drafts.steps(request, left)
                self._set_end(request, batch.iteration + steps)
            else:
                request.decode_end = WITH_FIRST
        for request in batch.stalled:
            self._set_end(request, request.decode_end + 1)
        if batch.preempted:
            self._mark_preempted(batch, now)

    def _fail(self, request: Request, reason: str, now: float) -> None:
        """The policy gave up *request*, which may have had tokens; its other samples may go on."""
        i = request.index
        request.decode_end = request.ticket = -1
        if request.generated and self._since.pop(request, None) is None:
            self._live -= 1
        self._fresh.pop(request, None)
        self._lagging.pop(request, None)
        self.records.output_length[i] += request.generated
        self.records.leave(i, FAILED, reason, now)
        left = self._siblings.pop(i, 1) - 1
        if left:
            self._siblings[i] = left
        else:
            self.source.completed(i, now)

    def _length(self, request: Request) -> int:
        length: int = self.outputs[request.index]
        return length if length < request.max_tokens else request.max_tokens

    def _set_end(self, request: Request, iteration: int) -> None:
        request.decode_end = iteration
        request.ticket = self._num_ends = self._num_ends + 1
        heapq.heappush(self._ends, (iteration, request.ticket, request))

    def _token_time(self, request: Request) -> float:
        """When *request*, which decodes, got its latest token."""
        if request in self._lagging:
            return self._lagging[request]
        return self._fresh.get(request, self._last_decode)

    def _mark_preempted(self, batch: Batch, now: float) -> None:
        before = batch.iteration - (1 if batch.num_decodes else 0)
        for request in batch.preempted:
            self.records.num_preemptions[request.index] += 1
            self.records.note(now, request.index, "PREEMPTED")
            self.records.status[request.index] = WAITING
            if self.scheduler.discards_in_flight:
                request.decode_end = request.ticket = -1
                if request.generated:
                    self._suspend(request)
                continue
            if request.decode_end > before:
                request.decode_end = request.ticket = -1
            if request.generated:
                batch.suspended.append(request)

    def _complete(self, batch: Batch, now: float) -> None:
        """*batch* has run: hand out its tokens, end what ended, tell the policy."""
        if batch.suspended:
            for request in batch.suspended:
                self._suspend(request)
        if batch.num_decodes:
            if self._fresh or self._lagging or batch.stalled:
                self._deliver_late(batch, now)
            elif self._live > 0:
                self.itl.add(now - self._last_decode, self._live)
            self._last_decode = now
        ends, iteration = self._ends, batch.iteration
        if self._quiet and not batch.joining and (not ends or ends[0][0] > iteration):
            return
        ended: list[Request] = []
        while ends and ends[0][0] <= iteration:
            _, ticket, request = heapq.heappop(ends)
            if request.ticket == ticket:
                ended.append(request)
        for request in batch.joining:
            self._first_token(request, now, ended)
        for request in ended:
            self._leave(request, now)
        if ended or not self._quiet:
            self.scheduler.commit(batch, ended, now)
        if self._undelivered and not self.scheduler.num_running:
            self._deliver_batch(self._undelivered, now)

    def _suspend(self, request: Request) -> None:
        # One whose last token was in flight when it lost its blocks has ended meanwhile.
        if request not in self._since and request.status != ENDED:
            self._since[request] = self._token_time(request)
            self._lagging.pop(request, None)
            self._fresh.pop(request, None)
            self._live -= 1

    def _deliver_batch(self, requests: list[Request], now: float) -> None:
        """A static batch is done: its members get all their tokens at once."""
        for request in requests:
            first, tokens = self.records.first_token_time, self._length(request)
            if first[request.index] != first[request.index]:
                first[request.index] = now
            if tokens > 1:
                self.itl.add(0.0, tokens - 1)
            self._finish(request, now)
        requests.clear()

    def _first_token(self, request: Request, now: float, ended: list[Request]) -> None:
        if self._undelivered is not None:
            if request.decode_end == WITH_FIRST:
                ended.append(request)
            return
        first = self.records.first_token_time
        i = request.index
        if first[i] != first[i]:
            first[i] = now
        if self._since:
            last = self._since.pop(request, None)
            if last is not None:
                self.itl.add(now - last, 1)
        self._live += 1
        if request.decode_end == WITH_FIRST:
            ended.append(request)
        else:
            self._fresh[request] = now

    def _deliver_late(self, batch: Batch, now: float) -> None:
        """Gaps of a decode iteration in which some had their latest token at another time than the rest."""
        live, fresh, lagging = self._live, self._fresh, self._lagging
        for request in batch.stalled:
            lagging[request] = self._token_time(request)
            fresh.pop(request, None)
        if len(lagging) > len(batch.stalled):
            stalled = set(batch.stalled)
            for request in [request for request in lagging if request not in stalled]:
                self.itl.add(now - lagging.pop(request), 1)
                live -= 1
        if fresh:
            self.itl.add_each([now - when for when in fresh.values()])
            live -= len(fresh)
            fresh.clear()
        live -= len(batch.stalled)
        if live > 0:
            self.itl.add(now - self._last_decode, live)

    def _leave(self, request: Request, now: float) -> None:
        request.decode_end = request.ticket = -1
        if self._undelivered is not None:
            self._undelivered.append(request)
            return
        self._live -= 1
        self._finish(request, now)

    def _finish(self, request: Request, now: float) -> None:
        i = request.index
        records = self.records
        length = self.outputs[i]
        records.output_length[i] += length if length < request.max_tokens else request.max_tokens
        if self._lagging:
            self._lagging.pop(request, None)
        if self._siblings:
            left = self._siblings.get(i, 1) - 1
            if left:
                self._siblings[i] = left
                return
            self._siblings.pop(i, None)
        records.finish_time[i] = now
        if records.status[i] != FAILED:  # as one of its samples may have
            records.status[i] = FINISHED
        self.source.completed(i, now)

    # the run over time

    def _note_gaps(self, batch: Batch, durations: Any, start: float) -> None:
        """Gaps of all repeated iterations but the last, which `_complete` notes when it ends."""
        first = start + float(durations[0])
        if self._fresh or self._lagging or batch.stalled:
            self._deliver_late(batch, first)
        elif self._live > 0:
            self.itl.add(first - self._last_decode, self._live)
        if len(durations) > 2:
            self.itl.add_many(durations[1:-1], self._live)
        self._last_decode = start + math.fsum(_floats(durations[:-1]))

    def _note_idle(self, now: float) -> None:
        waiting, used, cached, *waste = self.scheduler.levels()
        self.series.append(now, 0.0, 0, self.scheduler.num_running, waiting, 0, 0, 0, used, cached, 0, *waste)


def pooled_drafts(replicas: Iterable[Replica]) -> DraftCounts | None:
    """What became of the drafts of all *replicas*; None without speculation."""
    pooled: DraftCounts | None = None
    for replica in replicas:
        if replica.drafts is None:
            continue
        counts = replica.drafts.counts
        pooled = counts if pooled is None else pooled.plus(counts)
    return pooled


def _halfway(
    start: tuple[float, float, float, float, float, float, float],
    end: tuple[float, float, float, float, float, float, float],
) -> tuple[float, float, float, float, float, float, float]:
    """Mean levels of iterations over which every sequence grows by as many tokens: their blocks grow in a line."""
    waiting, used, cached, reserved, internal, external, shared = start
    return (
        waiting,
        (used + end[1]) / 2,
        (cached + end[2]) / 2,
        (reserved + end[3]) / 2,
        (internal + end[4]) / 2,
        (external + end[5]) / 2,
        (shared + end[6]) / 2,
    )


def _floats(durations: Any) -> Any:
    """Plain floats, which Python goes through several times as fast as through an array's."""
    return durations.tolist() if isinstance(durations, np.ndarray) else durations


def _own_content(index: int) -> int:
    """A content id for the prompt of request *index*, for samples that share it."""
    return -2 - index
