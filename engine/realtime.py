"""A list of requests run in real time: each is handed to the executor when it arrives, and every event is
noted.

This is the engine's side of a comparison with the simulator. Like the real servers, an arrival during an
iteration is seen when the iteration is over. With a `StepClock` time stands still within an iteration, so that a run
is fully told by the durations of its iterations; with a `RecordedClock` the same loop runs in such recorded time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.executor import Executor
from engine.params import SamplingParams
from engine.runner import StepTiming
from engine.sequence import Sequence as Sample
from engine.stats import Stats
from simulator.errors import CapacityError

__all__ = ["Arrival", "Clock", "RecordedClock", "Replay", "RequestTrace", "StepClock", "StepTrace", "replay"]


@dataclass(frozen=True)
class Arrival:
    """A request that arrives *time* seconds after the start."""

    time: float
    prompt: list[int]
    params: SamplingParams
    id: str | None = None


@dataclass
class RequestTrace:
    """What became of a request; times in seconds from the start, NaN where it did not come to that."""

    id: str
    arrival: float
    input_length: int
    scheduled: float = math.nan
    token_times: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    num_preemptions: int = 0
    status: str = "rejected"
    reason: str | None = None

    @property
    def first_token(self) -> float:
        """When the first token was there."""
        return self.token_times[0] if self.token_times else math.nan

    @property
    def finish(self) -> float:
        """When the last token was there."""
        return self.token_times[-1] if self.token_times else math.nan


@dataclass(frozen=True)
class StepTrace:
    """One iteration: when it began and ended (s from the start), its phases, and the executor after it."""

    start: float
    end: float
    timing: StepTiming | None
    stats: Stats


@dataclass
class Replay:
    """Requests in order of arrival, and the steps."""

    requests: list[RequestTrace]
    steps: list[StepTrace]


class Clock(Protocol):
    """Time as the replay sees it."""

    def __call__(self) -> float: ...

    def wait_until(self, moment: float) -> None: ...

    def stepped(self) -> None:
        """An iteration has run: its tokens are there."""
        ...


class RealClock:
    """The machine's time."""

    def __call__(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - time.perf_counter()))

    def stepped(self) -> None:
        pass


class StepClock:
    """The time of *base* as it was when the last iteration was done or the last wait over.

    All that is decided between two iterations is decided at one moment, as in the simulator; what the process does
    meanwhile counts to the iteration that follows. Iterations end at whole microseconds, so that records are short.
    """

    def __init__(self, base: Clock) -> None:
        self.base, self.now = base, round(base(), DIGITS)

    def __call__(self) -> float:
        return self.now

    def wait_until(self, moment: float) -> None:
        self.base.wait_until(moment)
        self.now = max(self.now, moment)

    def stepped(self) -> None:
        self.base.stepped()
        self.now = max(self.now, round(self.base(), DIGITS))


DIGITS = 6
"""Of a second: µs."""


class RecordedClock:
    """Time stands still but for waiting and for the recorded *seconds* of each iteration (the last one
    repeats).
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds, self.now, self._next = seconds, 0.0, 0

    def __call__(self) -> float:
        return self.now

    def wait_until(self, moment: float) -> None:
        self.now = max(self.now, moment)

    def stepped(self) -> None:
        self.now += self.seconds[min(self._next, len(self.seconds) - 1)]
        self._next += 1


def replay(
    executor: Executor,
    arrivals: Sequence[Arrival],
    clock: Clock | None = None,
    on_step: Callable[[StepTrace], None] | None = None,
    until: float = math.inf,
) -> Replay:
    """Run *arrivals* (in order of time) to the end; *on_step* hears of every iteration.

    At *until* seconds after the start the run is cut off: who has not ended by then is left as it is.
    """
    return _Run(executor, arrivals, clock or RealClock(), on_step, until).run()


class _Run:
    def __init__(
        self,
        executor: Executor,
        arrivals: Sequence[Arrival],
        clock: Clock,
        on_step: Callable[[StepTrace], None] | None,
        until: float,
    ) -> None:
        self.executor, self.arrivals, self.clock, self.on_step = executor, arrivals, clock, on_step
        self.until = until
        executor.clock, executor.computed = clock, clock.stepped
        self.start = clock()
        self.requests: list[RequestTrace] = []
        self.steps: list[StepTrace] = []
        self._of_sequence: dict[int, RequestTrace] = {}

    def run(self) -> Replay:
        while len(self.requests) < len(self.arrivals) or self.executor.has_work:
            if self.clock() - self.start >= self.until:
                break
            self._take_arrivals()
            self._step()  # also with nothing to do: policies may count on being asked then
        return Replay(self.requests, self.steps)

    @property
    def _next_arrival(self) -> float:
        """On the clock; infinity when all have come."""
        count = len(self.requests)
        return self.start + self.arrivals[count].time if count < len(self.arrivals) else math.inf

    def _take_arrivals(self) -> None:
        while self._next_arrival <= self.clock():
            arrival = self.arrivals[len(self.requests)]
            name = arrival.id or f"r{len(self.requests)}"
            trace = RequestTrace(name, arrival.time, len(arrival.prompt))
            self.requests.append(trace)
            try:
                group = self.executor.add(arrival.prompt, arrival.params, name, self.start + arrival.time)
            except CapacityError as error:
                trace.reason = str(error)
            else:
                trace.status = "running"
                self._of_sequence[id(group)] = trace

    def _step(self) -> None:
        began = self.clock()
        touched = self.executor.step()
        ended = self.clock()
        for sequence in touched:
            if sequence.index == 0:
                self._note(self._of_sequence[id(sequence.group)], sequence, ended)
        if self.executor.idle:
            if self.executor.has_work or len(self.requests) < len(self.arrivals):
                self._sleep()
            return
        timings = self.executor.runner.timings
        step = StepTrace(
            began - self.start, ended - self.start, timings[-1] if timings else None, self.executor.stats()
        )
        self.steps.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def _note(self, trace: RequestTrace, sequence: Sample, now: float) -> None:
        new = sequence.num_output - len(trace.token_times)  # several where a static batch is handed out
        trace.token_times += [now - self.start] * new
        if sequence.times.scheduled is not None:
            trace.scheduled = sequence.times.scheduled - self.start
        if sequence.finished:
            trace.status, trace.reason = ("failed", sequence.error) if sequence.error else ("finished", None)
            trace.cached_tokens = sequence.request.cached_tokens
            trace.num_preemptions = sequence.request.num_preemptions

    def _sleep(self) -> None:
        """Nothing to run: until the next arrival, or until the policy says that time alone changes the
        answer.
        """
        until = self.executor.wait_until
        moment = min(self._next_arrival, math.inf if until is None else until)
        if math.isinf(moment):
            raise CapacityError("the scheduler runs nothing, and no request is to come")
        self.clock.wait_until(moment)
