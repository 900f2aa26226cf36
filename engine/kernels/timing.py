"""Timing an operator: medians of repeated runs, on a GPU replayed from a CUDA graph.

A launch costs the host some microseconds, more than a small kernel takes: so the calls are captured once
and replayed, and what is timed is the device. One replay runs the operator on several copies of its inputs
in turn, together larger than the cache, so that every call reads memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Call", "Sample", "Timer", "copies_past_cache"]

Call = Callable[[], object]
CACHES = 5  # inputs together are this many times the L2 cache
LEAST, MOST = 5, 200  # replays


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: the median over *repeats*, and the median absolute deviation from it."""

    seconds: float
    spread: float
    repeats: int
    mode: str  # graph, eager (not captured), host, or among others


class Timer:
    """Measures on one device; *clock* is the host's, in seconds.

    *between* runs before every timed call on a CPU, untimed: other work, that leaves caches and branch predictors as a
    call finds them in a step. In a loop of its own a small operator takes a fifth of that time.
    """

    def __init__(
        self,
        device: torch.device,
        budget: float = 0.3,
        clock: Callable[[], float] = time.perf_counter,
        between: Call | None = None,
    ) -> None:
        self.device, self.budget, self.clock, self.between = device, budget, clock, between

    def measure(self, calls: Sequence[Call], capturable: bool = True) -> Sample:
        """Time per call of *calls*: the same operator on different copies of its inputs, in turn.

        Calls that look at the device's results (not *capturable*) are timed with their launches.
        """
        for call in calls:
            call()  # compiles, allocates, warms up
        if self.between is not None and self.device.type != "cuda":
            return self._among_others(calls, self.between)
        if self.device.type != "cuda":
            return self._repeat(lambda: run_all(calls), len(calls), "host")
        torch.cuda.synchronize(self.device)
        if not capturable:
            return self._repeat(lambda: run_all(calls), len(calls), "eager")
        try:
            return self._repeat(capture(calls).replay, len(calls), "graph")
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return self._repeat(lambda: run_all(calls), len(calls), "eager")

    def _repeat(self, replay: Call, count: int, mode: str) -> Sample:
        first = self._time(replay, 1)[0]
        repeats = min(MOST, max(LEAST, math.ceil(self.budget / max(first, 1e-9))))
        times = [seconds / count for seconds in self._time(replay, repeats)]
        return summarize(times, mode)

    def _among_others(self, calls: Sequence[Call], between: Call) -> Sample:
        """Each call by itself, after other work, in turn, until the budget is used."""
        times: list[float] = []
        began = self.clock()
        while len(times) < LEAST or (self.clock() - began < self.budget and len(times) < MOST):
            between()
            start = self.clock()
            calls[len(times) % len(calls)]()
            times.append(self.clock() - start)
        return summarize(times, "among others")

    def _time(self, replay: Call, repeats: int) -> list[float]:
        if self.device.type == "cuda":
            return time_events(replay, repeats)
        times = []
        for _ in range(repeats):
            start = self.clock()
            replay()
            times.append(self.clock() - start)
        return times


def summarize(times: Sequence[float], mode: str) -> Sample:
    """Median and median absolute deviation."""
    median = statistics.median(times)
    return Sample(median, statistics.median(abs(seconds - median) for seconds in times), len(times), mode)


def run_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """All *calls* in one graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all(calls)
    return graph


def time_events(replay: Call, repeats: int) -> list[float]:
    """Seconds of each run between two events of the stream, read after all have run."""
    pairs = [[new_event() for _ in range(2)] for _ in range(repeats)]
    for start, stop in pairs:
        start.record()
        replay()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]  # ms to s


def new_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]


def copies_past_cache(bytes_per_call: int, device: torch.device) -> int:
    """Copies of inputs that together exceed the L2 cache `CACHES` times."""
    if device.type != "cuda":
        return 1
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, math.ceil(CACHES * cache / max(1, bytes_per_call)))
