"""The work behind the pages, done once: traces and runs by what they depend on, shared by all readers.

A `Store` holds a bounded number of answers. Two readers who ask the same at the same time wait for one computation.
Simulations run in the reader's own script thread, never in the server's: `tick` draws the progress, and as Streamlit
stops a script at its next drawing when the reader has changed something or presses stop, it is also what cancels.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from app import library
from app.view import INTERVALS, View
from simulator import Result, Trace, read_trace, simulate
from simulator.breakdown import time_breakdown
from simulator.intervals import simulate_with_intervals
from simulator.results.report import report_html
from simulator.results.rundir import plain
from simulator.workload import Lengths, gamma_arrivals, generate_trace

__all__ = ["Store", "breakdown_of", "report_of", "result_of", "trace_of"]

Value = TypeVar("Value")
Tick = Callable[[float], None]


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


TRACES: Store[Trace] = Store(16)
RESULTS: Store[Result] = Store(32)
BREAKDOWNS: Store[dict[str, float]] = Store(128)
REPORTS: Store[str] = Store(4)


def trace_of(view: View, spread: str = "none") -> Trace:
    """The traffic of *view*; *spread* as in `read_trace`. Raises `SimError`."""
    return TRACES.get((view.traffic_key, spread), lambda: _trace(view, spread))


def result_of(view: View, tick: Tick | None = None) -> Result:
    """The run of *view*; *tick* is told the fraction that is done. Raises `SimError`."""
    return RESULTS.get(_key(view), lambda: _run(view, tick))


def breakdown_of(view: View) -> dict[str, float]:
    """Seconds in iterations by operator family of the run of *view*."""
    return BREAKDOWNS.get(_key(view), lambda: time_breakdown(result_of(view)))


def report_of(view: View) -> str:
    """The HTML report of the run of *view*."""
    return REPORTS.get(_key(view), lambda: _report(view))


def _key(view: View) -> tuple[str, str, str]:
    deployment = view.deployment().model_dump_json(exclude_unset=True)
    return view.traffic_key, deployment, f"{view.goodput} {view.intervals}"


def _trace(view: View, spread: str) -> Trace:
    trace = _described(view, spread) if view.described else _read(view, spread)
    return trace.with_max_concurrency(view.max_concurrency or None)


def _described(view: View, spread: str) -> Trace:
    """Generated, written and read again: what a file rounds off is rounded off here too."""
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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.jsonl"
        trace.to_jsonl(path)
        return read_trace(path, spread=spread)


def _read(view: View, spread: str) -> Trace:
    return read_trace(
        library.trace_path(view.source),
        format=view.format or None,
        time_unit=view.time_unit or None,
        spread=spread,
        limit=view.first or None,
        request_rate=view.rescaled_rate or None,
    )


def _run(view: View, tick: Tick | None) -> Result:
    trace, resolved = trace_of(view), view.deployment().resolve()
    if not view.intervals:
        return simulate(trace, resolved, goodput=view.goodput, progress=tick)
    done = [0]

    def tick_all(fraction: float) -> None:
        if tick is not None:
            tick(min((done[0] + fraction) / (INTERVALS + 1), 1.0))
        done[0] += fraction == 1.0

    return simulate_with_intervals(trace, resolved, INTERVALS, goodput=view.goodput, progress=tick_all)


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
    )
