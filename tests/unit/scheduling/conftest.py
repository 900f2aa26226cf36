"""A clock that counts iterations, for driving any policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.request import Request

Arrival = tuple[int, Request, int]
"""Iteration, request and how many tokens it will produce."""


class IterationClock:
    """Runs *scheduler* iteration by iteration, or over as many as it says repeat, and logs what happens when."""

    def __init__(self, scheduler: Scheduler, arrivals: Iterable[Arrival], *, skip: bool) -> None:
        self.scheduler, self.skip = scheduler, skip
        self.queue = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
        self.lengths = {request: length for _, request, length in self.queue}
        self.log: list[tuple[Any, ...]] = []
        self.now = 0
        self.inflight: deque[Batch] = deque()
        self.ends: dict[Request, int] = {}

    def run(self) -> list[tuple[Any, ...]]:
        """What happened: ``(iteration, event, request, ...)``."""
        while self.queue or self.step():
            while self.queue and self.queue[0][0] <= self.now:
                self.scheduler.add(self.queue.popleft()[1], self.now)
            if self.queue and not self.step():
                self.now = max(self.now, self.queue[0][0])
            assert self.now < 100_000, "no progress"
        assert not self.ends and not self.scheduler.num_running and not self.scheduler.num_waiting
        assert self.scheduler.blocks_used == 0
        return self.log

    def step(self) -> bool:
        """One iteration. False: nothing to do."""
        while len(self.inflight) < self.scheduler.depth:
            batch = self.scheduler.schedule(self.now)
            if not isinstance(batch, Batch):
                break
            self.begin(batch)
            self.inflight.append(batch)
        if not self.inflight:
            return False
        batch = self.inflight.popleft()
        if self.skip:
            self.leap(batch)
        self.complete(batch)
        self.now += 1
        return True

    def begin(self, batch: Batch) -> None:
        for request, chunk, context in batch.prefills:
            self.log.append((self.now, "prefill", request.id, chunk, context, batch.num_decodes))
        for request in batch.preempted:
            self.ends.pop(request, None)
            self.log.append((self.now, "preempt", request.id, request.generated))
        for request in batch.joining:
            self.ends[request] = batch.iteration + self.lengths[request] - request.generated
        for request in batch.stalled:
            self.ends[request] += 1
            self.log.append((self.now, "stall", request.id))

    def leap(self, batch: Batch) -> None:
        latest = self.inflight[-1] if self.inflight else batch
        same = batch.repeatable and latest.repeatable and batch.num_decodes == latest.num_decodes
        if not same or not self.ends:
            return
        limits = [end - batch.iteration for end in self.ends.values()]
        if self.queue:
            limits.append(self.queue[0][0] - self.now - 1)
        n = self.scheduler.repeats(latest, min(limits) + 1) - 1
        if n > 0:
            self.scheduler.advance(latest, n)
            if latest is not batch:
                batch.iteration += n
            self.now += n

    def complete(self, batch: Batch) -> None:
        ended = [request for request, end in self.ends.items() if end <= batch.iteration]
        ended = [request for request in ended if request not in self._joins_later()]
        for request in ended:
            del self.ends[request]
            self.log.append((self.now, "end", request.id))
        self.scheduler.commit(batch, ended, self.now)
        assert 0 <= self.scheduler.blocks_used <= self.scheduler.num_blocks

    def _joins_later(self) -> set[Request]:
        return {request for batch in self.inflight for request in batch.joining}


@pytest.fixture
def play() -> Callable[..., list[tuple[Any, ...]]]:
    """``play(scheduler, arrivals, skip=False)``: the log of a whole run."""

    def run(
        scheduler: Scheduler, arrivals: Iterable[Arrival], *, skip: bool = False
    ) -> list[tuple[Any, ...]]:
        return IterationClock(scheduler, arrivals, skip=skip).run()

    return run


@pytest.fixture
def crowd() -> Callable[..., list[Arrival]]:
    """``crowd(rng, n)``: random requests, half of which share prefixes."""

    def make(rng: Any, n: int = 25, longest: int = 40) -> list[Arrival]:
        arrivals = []
        for i in range(n):
            prompt, output = rng.randint(1, longest), rng.randint(1, longest)
            content = ((rng.randint(0, 2), rng.randint(1, prompt)),) if rng.random() < 0.5 else ()
            request = Request(f"r{i}", prompt, output + rng.randint(0, 5), index=i, content=content)
            arrivals.append((rng.randint(0, 60), request, output))
        return arrivals

    return make
