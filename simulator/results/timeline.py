"""The run as a timeline that opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

Chrome's JSON trace format: per replica a process with one lane of batches (complete events "X", which must
not overlap on a lane), counters for KV blocks and requests, and one asynchronous track per request ("b"/"e"
pairs, which may overlap) with the phases that vLLM names QUEUED, SCHEDULED and PREEMPTED. Times are
microseconds with three decimals.

A million requests would make a file nobody can open, so batches and requests stop after a stated window; the
counters cover the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from simulator.results.records import STATUS, Records, RequestEvent
from simulator.results.series import StepSeries, head_rows

MAX_REQUESTS = 500
MAX_COUNTER_POINTS = 2000
BATCH_LANE = 1
_TIME, _DURATION, _ITERATIONS, _RUNNING, _WAITING, _DECODES, _PREFILL = range(7)


def timeline(
    records: Records,
    series: Sequence[StepSeries],
    events: Iterable[RequestEvent] = (),
    max_requests: int = MAX_REQUESTS,
) -> dict[str, Any]:
    """The trace as a JSON-ready dict; ``metadata`` says what was left out.

    Requests: the first *max_requests* to arrive. *events* adds when a request was preempted and scheduled
    again.
    """
    shown = _first_to_arrive(records, max_requests)
    left = leaving_times(records, series)
    until = float(left[shown].max(initial=0.0))
    trace = list(process_names(series))
    batches = 0
    for s in series:
        lanes = list(batch_events(s, until))
        batches += len(lanes)
        trace += lanes
        trace += counter_events(s)
    trace += request_events(records, shown, left, events)
    metadata = {
        "requests_shown": len(shown),
        "requests_in_run": len(records),
        "batches_shown": batches,
        "window_end_s": until,
        "note": "batches and requests: beginning of the run; counters: all of it, averaged between points",
    }
    return {"traceEvents": trace, "displayTimeUnit": "ms", "metadata": metadata}


def leaving_times(records: Records, series: Sequence[StepSeries]) -> np.ndarray:
    """When each request left, or where the run was cut off if it was still there, s, shape [requests]."""
    times = np.concatenate((records.finish_time, records.arrival_time, [s.end_time() for s in series], [0.0]))
    return np.where(np.isnan(records.finish_time), np.nanmax(times), records.finish_time)


def process_names(series: Sequence[StepSeries]) -> Iterator[dict[str, Any]]:
    """Names of the processes and lanes."""
    yield {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "requests"}}
    for s in series:
        pid = s.replica + 1
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"replica {s.replica}"}}
        yield {
            "ph": "M",
            "name": "thread_name",
            "pid": pid,
            "tid": BATCH_LANE,
            "args": {"name": "batches"},
        }


def batch_events(series: StepSeries, until: float) -> Iterator[dict[str, Any]]:
    """One complete event per decision that begins before *until* (s), each on the first lane that is free."""
    rows = head_rows(series)
    rows = rows[(rows[:, _ITERATIONS] > 0) & (rows[:, _TIME] <= until)]
    starts = np.rint(rows[:, _TIME] * 1e9).astype(np.int64)
    ends = np.rint((rows[:, _TIME] + rows[:, _DURATION]) * 1e9).astype(np.int64)
    free: list[int] = []
    for row, start, end in zip(rows, starts.tolist(), ends.tolist(), strict=True):
        # Two sums of the same durations may differ by one nanosecond: that is no overlap.
        lane = next((i for i, at in enumerate(free) if at <= start + 1), len(free))
        begin = max(start, free[lane]) if lane < len(free) else start
        free[lane : lane + 1] = [max(begin, end)]
        yield {
            "ph": "X",
            "name": _batch_name(row),
            "pid": series.replica + 1,
            "tid": BATCH_LANE + lane,
            "ts": begin / 1000,
            "dur": max(end - begin, 0) / 1000,
            "args": _batch_args(row),
        }


def _batch_name(row: np.ndarray) -> str:
    iterations, decodes, prefill = (int(row[i]) for i in (_ITERATIONS, _DECODES, _PREFILL))
    kind = "mixed" if prefill and decodes else "prefill" if prefill else "decode"
    return kind if iterations == 1 else f"{kind} ×{iterations}"


def _batch_args(row: np.ndarray) -> dict[str, int]:
    names = {"batch_size": _RUNNING, "num_decodes": _DECODES, "prefill_tokens": _PREFILL}
    return {name: int(row[i]) for name, i in (names | {"waiting": _WAITING}).items()}


def counter_events(series: StepSeries) -> Iterator[dict[str, Any]]:
    """Counters of KV blocks and requests over the whole run, at most `MAX_COUNTER_POINTS` of each."""
    points = series.points()
    every = max(math.ceil(len(points["time"]) / MAX_COUNTER_POINTS), 1)
    chosen = {name: column[::every].tolist() for name, column in points.items()}
    for i, time in enumerate(chosen["time"]):
        common = {"ph": "C", "pid": series.replica + 1, "ts": _microseconds(time)}
        used, cached = chosen["kv_blocks_used"][i], chosen["kv_blocks_cached"][i]
        yield {**common, "name": "KV blocks", "args": {"used": round(used, 1), "cached": round(cached, 1)}}
        running, waiting = chosen["num_running"][i], chosen["num_waiting"][i]
        counts = {"running": round(running, 2), "waiting": round(waiting, 2)}
        yield {**common, "name": "requests", "args": counts}


def request_events(
    records: Records, shown: Sequence[int], left: np.ndarray, events: Iterable[RequestEvent]
) -> Iterator[dict[str, Any]]:
    """For each request an outer span and inside it its phases, all pairs "b"/"e" of one id."""
    wanted = set(shown)
    changes: dict[int, list[tuple[float, str]]] = {i: [] for i in shown}
    for time, i, name in events:
        if i in wanted:
            changes[i].append((time, name))
    ids = records.ids()
    for i in shown:
        yield from _track(records, i, ids[i], phases(records, i, float(left[i]), changes[i]))


def phases(
    records: Records, i: int, end: float, changes: Sequence[tuple[float, str]] = ()
) -> list[tuple[str, float, float]]:
    """(name, begin, end) of each phase of request *i* until *end*, in s, without gaps."""
    marks = [(float(records.arrival_time[i]), "QUEUED")]
    if not math.isnan(records.first_scheduled_time[i]):
        marks.append((float(records.first_scheduled_time[i]), "SCHEDULED"))
    marks += sorted(change for change in changes if change[0] > marks[-1][0])
    ends = [*(begin for begin, _ in marks[1:]), end]
    return [(name, begin, stop) for (begin, name), stop in zip(marks, ends, strict=True)]


def _track(
    records: Records, i: int, name: str, spans: Sequence[tuple[str, float, float]]
) -> Iterator[dict[str, Any]]:
    def event(ph: str, label: str, time: float, **args: Any) -> dict[str, Any]:
        common = {"ph": ph, "cat": "request", "id": i, "pid": 0, "tid": 0}
        return {**common, "name": label, "ts": _microseconds(time), **args}

    facts = {
        "input_length": int(records.input_length[i]),
        "output_length": int(records.output_length[i]),
        "cached_tokens": int(records.cached_tokens[i]),
        "preemptions": int(records.num_preemptions[i]),
        "replica": int(records.replica[i]),
        "status": STATUS[records.status[i]],
    }
    yield event("b", name, spans[0][1], args=facts)
    for label, begin, end in spans:
        yield event("b", label, begin)
        first = float(records.first_token_time[i])
        if label == "SCHEDULED" and begin < first <= end:
            yield event("n", "FIRST_TOKEN", first)
        yield event("e", label, end)
    yield event("e", name, spans[-1][2])


def _first_to_arrive(records: Records, number: int) -> list[int]:
    arrived = np.flatnonzero(records.status >= 0)
    order = np.argsort(records.arrival_time[arrived], kind="stable")
    return [int(i) for i in arrived[order[:number]]]


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
