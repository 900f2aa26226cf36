"""The whole job: what fits the time, in shuffled order, every sample written as it comes.

Shots are planned level by level until their estimated time fills the budget, then shuffled (the coarse grid,
then the rest), so that a clock that drifts is not mistaken for a size. What a kill interrupted goes on with
the shots that are missing.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from calibrate.measure.device import Thermometer
from calibrate.measure.records import RawFolder
from calibrate.measure.shot import Sample, Shot

__all__ = ["Bench", "Campaign", "Progress", "plan_shots"]

RETRIES = 2
LEAST_RUNS = 7
"""Warm-up, a first run, and at least five that count."""
CALM = 1.0
"""Seconds a throttled device rests before the shot is taken again."""
SLACK = 0.9
"""Share of the budget that is planned: estimates err."""
MOST_FAILURES = 5
"""Failures in a row after which the device is taken to be lost."""
STEP_SHARE = 0.25
"""Share of the time that whole steps get."""


class Bench(Protocol):
    """Whatever measures a shot; `calibrate.measure.workbench.Workbench` does so for real."""

    def measure(self, shot: Shot) -> Sample: ...


@dataclass
class Campaign:
    """Measures shots into *folder*; *common* are columns that all rows share."""

    bench: Bench
    folder: RawFolder
    common: Mapping[str, Any]
    thermometer: Thermometer
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    rest: Callable[[float], None] = time.sleep
    _failures: int = 0
    throttled: list[Shot] = field(default_factory=list)
    failed: list[Shot] = field(default_factory=list)

    def run(
        self, shots: Sequence[Shot], done: set[tuple[str, ...]], deadline: float, progress: Progress
    ) -> int:
        """Measure what of *shots* is not *done* until *deadline* (of the clock); how many were left out."""
        todo = [shot for shot in shots if shot.key not in done]
        random.Random(self.seed).shuffle(todo)
        todo.sort(
            key=lambda shot: shot.level > 0
        )  # the coarse grid first: an early end leaves no holes in it
        for count, shot in enumerate(todo):
            progress.show(count, len(todo), self.clock())
            if self.clock() > deadline:
                progress.end(f"out of time: {len(todo) - count} of {len(todo)} shots left out")
                return len(todo) - count
            self._try(shot)
            if self._failures >= MOST_FAILURES:
                progress.end(f"stopped: {MOST_FAILURES} shots in a row failed, see failed.jsonl")
                return len(todo) - count
        progress.end(f"{len(todo)} shots measured")
        return 0

    def _try(self, shot: Shot) -> None:
        """One shot; what it alone cannot do, for lack of memory or by a kernel's fault, does not lose the others."""
        try:
            self._take(shot)
            self._failures = 0
        except RuntimeError as error:  # torch's, out of memory included
            self.failed.append(shot)
            self._failures += 1
            self.folder.note_failure(shot, str(error).splitlines()[0])

    def _take(self, shot: Shot) -> None:
        """One sample; taken again where the device had throttled, and marked when that does not help."""
        for attempt in range(RETRIES + 1):
            sample = self.bench.measure(shot)
            reading, throttled = self.thermometer.read()
            state = {} if reading is None else vars(reading)
            sample = Sample(tuple({**row, **state} for row in sample.rows), throttled)
            if not throttled:
                break
            if attempt < RETRIES:
                self.rest(CALM)
        if sample.throttled:
            self.throttled.append(shot)
        self.folder.add(shot, sample, self.common)


def plan_shots(
    operators: Iterable[Shot],
    seconds: float,
    ceilings: Mapping[str, float],
    repeat: float,
    pause: float = 0.0,
) -> list[Shot]:
    """The densest levels of *operators* that fit into *seconds*; *repeat* is spent repeating each.

    *pause* seconds pass before every call: what runs between two of them.

    Within the level that no longer fits whole, every table keeps an even share of its shots.
    """
    left = seconds * SLACK * (1 - STEP_SHARE)
    chosen: list[Shot] = []
    by_level: dict[int, list[Shot]] = {}
    for shot in operators:
        by_level.setdefault(shot.level, []).append(shot)
    for _, shots in sorted(by_level.items()):
        cost = sum(estimate(shot, ceilings, repeat, pause) for shot in shots)
        if cost > left:
            stride = math.ceil(cost / left)
            return chosen + list(_affordable(shots[::stride], left, ceilings, repeat, pause))
        chosen += shots
        left -= cost
    return chosen


def _affordable(
    shots: Iterable[Shot], left: float, ceilings: Mapping[str, float], repeat: float, pause: float
) -> Iterator[Shot]:
    """As many of *shots*, from the first on, as *left* seconds allow."""
    for shot in shots:
        left -= estimate(shot, ceilings, repeat, pause)
        if left < 0:
            return
        yield shot


def estimate(shot: Shot, ceilings: Mapping[str, float], repeat: float, pause: float = 0.0) -> float:
    """Seconds that a shot takes, a third of the ceilings reached."""
    once = pause + 3 * (shot.flops / ceilings["gemm_flops_per_s"] + shot.bytes / ceilings["copy_bytes_per_s"])
    return max(LEAST_RUNS * once, repeat + 2 * once) + SETUP


SETUP = 5e-3
"""Seconds to draw the inputs of a shot."""


class Progress:
    """A bar with the time left; on a file that is no terminal, a line per tenth."""

    def __init__(
        self, label: str, out: TextIO = sys.stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.out = label, out
        self._start, self._tenth = clock(), -1

    def show(self, count: int, total: int, now: float) -> None:
        """*count* of *total* are done at *now*."""
        share = count / max(1, total)
        left = (now - self._start) / share * (1 - share) if count else None
        text = f"{self.label} {count}/{total}" + ("" if left is None else f", {_clock(left)} left")
        if self.out.isatty():
            filled = int(24 * share)
            self.out.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}   ")
        elif int(10 * share) > self._tenth:
            self.out.write(text + "\n")
        self._tenth = int(10 * share)
        self.out.flush()

    def end(self, text: str) -> None:
        """Say how it ended."""
        self.out.write(("\n" if self.out.isatty() else "") + f"{self.label}: {text}\n")
        self.out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
