"""Replicas behind a router.

With an open loop and a router that does not look at the replicas, each replica is given its own arrivals and knows
when the next one comes. Otherwise an injector sends each request when it is due, the router chooses from what the
replicas look like at that moment, and the chosen replica is told.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import simpy

from simulator.errors import UnknownNameError
from simulator.injection import ClosedLoop, OpenLoop, arrivals
from simulator.replica import Replica
from simulator.results import RecordsBuilder
from simulator.scheduling import Request, Scheduler
from simulator.steptime import StepTime
from simulator.workload import Trace

__all__ = ["ROUTERS", "Cluster"]

ROUTERS = ("random", "round-robin")


class Inbox(OpenLoop):
    """The arrivals of an open replica: what the injector has put in. They are due at once."""

    def __init__(self, completed: Callable[[int, float], None]) -> None:
        self._requests: deque[Request] = deque()
        self._completed = completed
        self.next_time = math.inf

    def put(self, request: Request) -> None:
        """*request* has arrived."""
        self._requests.append(request)
        self.next_time = self._requests[0].arrival_time

    def pop(self) -> Request:
        request = self._requests.popleft()
        self.next_time = self._requests[0].arrival_time if self._requests else math.inf
        return request

    def completed(self, index: int, now: float) -> None:
        self._completed(index, now)


class Cluster:
    """*num_replicas* equal replicas that serve *trace*.

    *make_scheduler* is called once per replica; *max_tokens* is the limit stated for each request, int64[n].
    """

    def __init__(
        self,
        env: simpy.Environment,
        trace: Trace,
        max_tokens: np.ndarray[Any, np.dtype[np.int64]],
        make_scheduler: Callable[[], Scheduler],
        steptime: StepTime,
        *,
        num_replicas: int = 1,
        router: str = "round-robin",
        seed: int = 0,
        stepped: bool = False,
        horizon: float = math.inf,
    ) -> None:
        if router not in ROUTERS:
            raise UnknownNameError("router", router, ROUTERS)
        self.env = env
        self.records = RecordsBuilder(len(trace))
        outputs = trace.output_length.tolist()
        source = arrivals(trace, max_tokens)
        self._closed = isinstance(source, ClosedLoop) and num_replicas > 1
        self._source = source
        self._turn = _turns(router, num_replicas, seed)
        sources = self._sources(trace, max_tokens, num_replicas)
        self.replicas = [
            Replica(
                env, make_scheduler(), steptime, s, outputs, self.records, index=i, stepped=stepped, open=self._closed, horizon=horizon
            )
            for i, s in enumerate(sources)
        ]
        if self._closed:
            self._injector = env.process(self._inject())
            self._sleeping = False

    def _sources(self, trace: Trace, max_tokens: Any, n: int) -> list[OpenLoop]:
        if n == 1:
            return [self._source]
        if self._closed:
            return [Inbox(self._on_completed) for _ in range(n)]
        chosen = np.fromiter(self._turn, np.int64, len(trace))
        return [arrivals(trace, max_tokens, np.flatnonzero(chosen == i)) for i in range(n)]

    def _inject(self) -> Generator[simpy.Event, Any, None]:
        source, env = self._source, self.env
        while True:
            while source.next_time <= env.now:
                replica = self.replicas[next(self._turn)]
                assert isinstance(replica.source, Inbox)
                replica.source.put(source.pop())
                replica.deliver()
            self._sleeping = True
            try:
                if source.next_time == math.inf:
                    yield env.event()
                else:
                    yield env.timeout(source.next_time - env.now)
            except simpy.Interrupt:
                pass
            self._sleeping = False

    def _on_completed(self, index: int, now: float) -> None:
        before = self._source.next_time
        self._source.completed(index, now)
        if self._source.next_time < before and self._sleeping:
            self._sleeping = False
            self._injector.interrupt()


def _turns(router: str, n: int, seed: int) -> Iterator[int]:
    """The replica of each request in turn, by a router that does not look at them."""
    if router == "round-robin":
        return itertools.cycle(range(n))
    rng = np.random.default_rng(seed)
    return iter(lambda: int(rng.integers(n)), -1)
