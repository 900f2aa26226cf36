"""The work behind the pages, done once: traces and runs by what they depend on, shared by all readers.

Answers are kept by content, a bounded number of them or of bytes. Two readers who ask the same at the same time wait
for one computation. What takes long is done by other `processes`; `tick` draws the progress meanwhile, and as it is
there that Streamlit stops a script whose reader has changed something or presses stop, it is also what lets go of the
work: the last reader to let go ends it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from app import library, predictions, processes
from app.occupancy import Occupancy, occupancy
from app.processes import Job, Tick
from app.view import INTERVALS, View
from simulator import Deployment, Result, Trace, read_trace, simulate
from simulator.breakdown import time_breakdown
from simulator.deployment import Resolved
from simulator.intervals import simulate_with_intervals
from simulator.results.report import report_html
from simulator.results.rundir import plain
from simulator.workload import Lengths, gamma_arrivals, generate_trace
from simulator.workload.export import as_written
from simulator.workload.spread import spread_uniform

__all__ = [
    "Answers",
    "Store",
    "breakdown_of",
    "occupancy_of",
    "predictions_of",
    "report_of",
    "result_of",
    "trace_of",
]

Value = TypeVar("Value")
POLL_S = 0.05
LONG = 20_000
"""Requests, over all runs of a job, from which on it is a long one."""
LONG_FILE = 4_000_000
"""Bytes of a trace from which on reading it is a long job."""


class Store(Generic[Value]):
    """The latest *size* answers by key; each is made by one thread while others wait for it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """The answer under *key*, made now if need be; an error is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            if key in self._values:
                return self._values[key]
            value = make()
            self._keep(key, value)
            return value

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def _keep(self, key: Any, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._locks.pop(key, None)
            while len(self._values) > self.size:
                self._values.popitem(last=False)


class Answers(Generic[Value]):
    """The latest answers of other processes, at most *room* bytes of them; whoever asks the same waits together."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: OrderedDict[Any, tuple[Value, int]] = OrderedDict()
        self._under_way: dict[Any, tuple[Job[Value], int]] = {}
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What the answers take, as they came."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: Any, start: Callable[[], Job[Value]], tick: Tick | None = None) -> Value:
        """The answer under *key*, worked out now if need be; an error is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            job, waiting = self._under_way.get(key) or (start(), 0)
            self._under_way[key] = job, waiting + 1
        try:
            while not job.wait(POLL_S):
                if tick is not None:
                    tick(job.fraction)
            return self._keep(key, job)
        finally:
            self._let_go(key, job)

    def _keep(self, key: Any, job: Job[Value]) -> Value:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = job.result(), job.num_bytes
            value = self._kept[key][0]
            while len(self._kept) > 1 and self.num_bytes > self.room:
                self._kept.popitem(last=False)
            return value

    def _let_go(self, key: Any, job: Job[Value]) -> None:
        """The last one to leave ends what nobody waits for."""
        with self._lock:
            _, waiting = self._under_way.pop(key)
            if waiting > 1:
                self._under_way[key] = job, waiting - 1
            else:
                job.end()


Outcome = dict[str, Any]
"""What a run adds to its trace and deployment: the other fields of a `Result`."""

TRACES: Store[Trace] = Store(16)
FILES: Answers[Trace] = Answers(256 * 2**20)
RESULTS: Answers[Outcome] = Answers(512 * 2**20)
OCCUPANCIES: Answers[Occupancy] = Answers(32 * 2**20)
PREDICTIONS: Answers[pd.DataFrame] = Answers(32 * 2**20)
BREAKDOWNS: Store[dict[str, float]] = Store(128)
REPORTS: Store[str] = Store(4)


def trace_of(view: View, spread: str = "none") -> Trace:
    """The traffic of *view*; *spread* as in `read_trace`. Raises `SimError`."""
    key = view.traffic_key, spread
    if view.described:
        return TRACES.get(key, lambda: _described(view, spread))
    path = library.trace_path(view.source)
    long = Path(path).is_file() and Path(path).stat().st_size > LONG_FILE
    trace = FILES.get(key, lambda: processes.start(_read, path, view, spread, long=long))
    return trace.with_max_concurrency(view.max_concurrency or None)


def result_of(view: View, tick: Tick | None = None) -> Result:
    """The run of *view*; *tick* is told the fraction that is done. Raises `SimError`."""
    trace, deployment = trace_of(view), view.deployment()
    resolved = deployment.resolve()
    runs = INTERVALS + 1 if view.intervals else 1

    def start() -> Job[Outcome]:
        stated = deployment.model_dump_json(exclude_unset=True)
        return processes.start(_run, trace, stated, view.goodput, runs, long=len(trace) * runs > LONG)

    return Result(trace, resolved, **RESULTS.get(_key(view), start, tick))


def occupancy_of(view: View, time: float, replica: int, tick: Tick | None = None) -> Occupancy:
    """Who holds which KV block of *replica* at *time* (s) of the run of *view*. Raises `SimError`."""
    trace, stated = trace_of(view), view.deployment().model_dump_json(exclude_unset=True)

    def start() -> Job[Occupancy]:
        return processes.start(occupancy, trace, stated, time, replica, long=False)

    return OCCUPANCIES.get((_key(view), time, replica), start, tick)


def predictions_of(path: str, tick: Tick | None = None) -> pd.DataFrame:
    """Predictions for the measured runs in the file at *path*. Raises `SimError`."""
    return PREDICTIONS.get(path, lambda: processes.start(predictions.predictions, path, long=False), tick)


def breakdown_of(view: View) -> dict[str, float]:
    """Seconds in iterations by operator family of the run of *view*."""
    return BREAKDOWNS.get(_key(view), lambda: time_breakdown(result_of(view)))


def report_of(view: View) -> str:
    """The HTML report of the run of *view*."""
    return REPORTS.get(_key(view), lambda: _report(view))


def _key(view: View) -> tuple[str, str, str]:
    deployment = view.deployment().model_dump_json(exclude_unset=True)
    return view.traffic_key, deployment, f"{view.goodput} {view.intervals}"


def _described(view: View, spread: str) -> Trace:
    """Generated, and rounded off as a file would be: the copied command writes one and reads it again."""
    trace = generate_trace(
        view.num_prompts,
        arrivals=lambda n, g: gamma_arrivals(n, view.request_rate, view.burstiness, g),
        input_length=Lengths.parse(view.lengths("input")),
        output_length=Lengths.parse(view.lengths("output")),
        turns=Lengths.parse(f"uniform:low=1,high={view.turns}") if view.turns > 1 else None,
        think_time=view.think_time if view.turns > 1 else 0.0,
        num_prefixes=view.num_prefixes,
        prefix_length=Lengths.parse(str(view.prefix_length)) if view.num_prefixes else None,
        seed=view.seed,
    )
    written = as_written(trace)
    if spread == "uniform":
        written = spread_uniform(written, np.random.default_rng(0))
    return written.with_max_concurrency(view.max_concurrency or None)


def _read(path: str, view: View, spread: str, tick: Tick) -> Trace:
    return read_trace(
        path,
        format=view.format or None,
        time_unit=view.time_unit or None,
        spread=spread,
        limit=view.first or None,
        request_rate=view.rescaled_rate or None,
    )


@lru_cache(4)
def _resolved(stated: str) -> Resolved:
    """Kept by each process, as its step times remember what they have worked out."""
    return Deployment.model_validate_json(stated).resolve()


def _run(trace: Trace, stated: str, goodput: dict[str, float], runs: int, tick: Tick) -> Outcome:
    result = _simulated(trace, _resolved(stated), goodput, runs, tick)
    return {f.name: getattr(result, f.name) for f in fields(Result) if f.name not in ("trace", "resolved")}


def _simulated(trace: Trace, resolved: Resolved, goodput: dict[str, float], runs: int, tick: Tick) -> Result:
    if runs == 1:
        return simulate(trace, resolved, goodput=goodput, progress=tick)
    done = [0]

    def tick_all(fraction: float) -> None:
        tick(min((done[0] + fraction) / runs, 1.0))
        done[0] += fraction == 1.0

    return simulate_with_intervals(trace, resolved, runs - 1, goodput=goodput, progress=tick_all)


def _report(view: View) -> str:
    run = result_of(view).run()
    return report_html(
        run.summary,
        title=run.title,
        config=plain(run.config),
        provenance=run.provenance,
        defaults=run.defaults,
        warnings=run.warnings,
        time_breakdown=run.time_breakdown,
        tables=run.tables,
    )
