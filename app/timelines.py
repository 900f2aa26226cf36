"""The life of requests and of a replica on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from simulator import Result
from simulator.breakdown import KV_FULL
from simulator.results import FINISHED
from simulator.results.figures import PALETTE
from simulator.results.timeline import phases

__all__ = ["PREEMPTED", "RANKED", "around", "lives_figure", "preemptions", "slowest", "story"]

SHOWN = 50
PREEMPTED = "times preempted"
FULL_BATCH = 0.97
BATCH_LIMITS = ("max_num_seqs", "max_batch_size", "max_running_requests", "n_parallel", "max_num_sequence")
PHASES = (("queued", PALETTE[1]), ("prefill", PALETTE[0]), ("decode", PALETTE[2]))
RANKED = {
    "end to end": "finish_time",
    "time to first token": "first_token_time",
    "queue": "first_scheduled_time",
}


def slowest(result: Result, by: str, number: int = 25) -> list[int]:
    """Indices of the finished requests that took longest *by* one of `RANKED`, or were `PREEMPTED` most often."""
    records = result.records
    if by == PREEMPTED:
        taken = np.where(records.num_preemptions > 0, records.num_preemptions, np.nan)
    else:
        taken = getattr(records, RANKED[by]) - records.arrival_time
    taken = np.where((records.status == FINISHED) & ~np.isnan(taken), taken, -1.0)
    order = np.argsort(-taken, kind="stable")[:number]
    return [int(i) for i in order if taken[i] >= 0]


def around(result: Result, request: int) -> NDArray[np.int64]:
    """The finished requests of the same replica that lived while *request* did, itself among them."""
    r = result.records
    both = (r.arrival_time < r.finish_time[request]) & (r.finish_time > r.arrival_time[request])
    found = np.flatnonzero(both & (r.status == FINISHED) & (r.replica == r.replica[request]))
    near = np.argsort(np.abs(r.arrival_time[found] - r.arrival_time[request]), kind="stable")[:SHOWN]
    return np.sort(found[near]).astype(np.int64)


def lives_figure(result: Result, requests: Sequence[int], chosen: int) -> go.Figure:
    """Queued, prefill and decode of *requests*, above the queue and the KV cache of their replica."""
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.74, 0.26], vertical_spacing=0.05)
    r, names = result.records, [result.trace.name(int(i)) for i in requests]
    marks = [r.arrival_time, r.first_scheduled_time, r.first_token_time, r.finish_time]
    for (phase, colour), begin, end in zip(PHASES, marks, marks[1:], strict=False):
        width = (end - begin)[requests]
        figure.add_bar(
            y=names,
            x=width,
            base=begin[requests],
            orientation="h",
            name=phase,
            marker={"color": colour, "opacity": [1.0 if i == chosen else 0.55 for i in requests]},
            customdata=[[int(i)] for i in requests],
            hovertemplate=f"%{{y}}: {phase} %{{x:.4g}} s<extra></extra>",
            row=1,
            col=1,
        )
    _preempted(figure, result, requests)
    _levels(figure, result, float(marks[0][requests].min()), float(marks[3][requests].max()), chosen)
    figure.update_yaxes(autorange="reversed", type="category", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title="time (s)", row=2, col=1)
    figure.update_layout(
        barmode="overlay",
        height=240 + 15 * len(names),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.06},
        dragmode="zoom",
    )
    return figure


def preemptions(result: Result, i: int) -> list[tuple[float, float]]:
    """When request *i* was without its blocks: (begin, end) of each time, s."""
    end = float(result.records.finish_time[i])
    changes = [(time, name) for time, index, name in result.events if index == i]
    spans = phases(result.records, i, end, changes)
    return [(begin, stop) for name, begin, stop in spans if name == "PREEMPTED"]


def _preempted(figure: go.Figure, result: Result, requests: Sequence[int]) -> None:
    spans = [(i, begin, end) for i in requests for begin, end in preemptions(result, i)]
    if spans:
        figure.add_bar(
            y=[result.trace.name(i) for i, _, _ in spans],
            x=[end - begin for _, begin, end in spans],
            base=[begin for _, begin, _ in spans],
            orientation="h",
            name="preempted",
            marker={"color": PALETTE[5]},
            customdata=[[i] for i, _, _ in spans],
            hovertemplate="%{y}: preempted for %{x:.4g} s<extra></extra>",
            row=1,
            col=1,
        )


def _levels(figure: go.Figure, result: Result, begin: float, end: float, chosen: int) -> None:
    series = result.series[max(int(result.records.replica[chosen]), 0)]
    points = series.points()
    inside = (points["time"] + points["span"] >= begin) & (points["time"] <= end)
    usage = 100 * points["kv_blocks_used"] / max(series.num_gpu_blocks, 1)
    curves = [
        ("waiting", points["num_waiting"], PALETTE[5]),
        ("in the batch", points["num_running"], PALETTE[6]),
    ]
    for name, values, colour in [*curves, ("KV cache in use (%)", usage, PALETTE[4])]:
        line = {"color": colour, "width": 1.5, "shape": "hv"}
        x, y = points["time"][inside], values[inside]
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, row=2, col=1)


def story(result: Result, i: int) -> list[str]:
    """What request *i* went through, a sentence per phase."""
    r, s = result.records, result.summary
    queued = r.first_scheduled_time[i] - r.arrival_time[i]
    prefill = r.first_token_time[i] - r.first_scheduled_time[i]
    decode, tokens = r.finish_time[i] - r.first_token_time[i], int(r.output_length[i])
    ahead = (r.arrival_time < r.arrival_time[i]) & (r.replica == r.replica[i])
    waiting = int((ahead & (r.first_scheduled_time > r.arrival_time[i])).sum())
    running = int(
        (ahead & (r.first_scheduled_time <= r.arrival_time[i]) & (r.finish_time > r.arrival_time[i])).sum()
    )
    lines = [
        f"It came at {r.arrival_time[i]:,.2f} s, when {running} requests were being served and {waiting} waited.",
        f"It **waited {_time(queued)}**{_why(result, i, queued)}.",
        f"Its prompt of {r.input_length[i]:,} tokens{_cached(int(r.cached_tokens[i]))} took **{_time(prefill)}** "
        "until the first token.",
    ]
    if tokens > 1:
        tpot, usual = decode / (tokens - 1), float(s["median_tpot_ms"] or 0) / 1000
        lines.append(
            f"The other {tokens - 1:,} tokens took **{_time(decode)}**: {_time(tpot)} each, "
            f"{tpot / usual:.1f} times the run's median of {_time(usual)}."
        )
    if r.num_preemptions[i]:
        spans = preemptions(result, i)
        lost, times = (
            sum(end - begin for begin, end in spans),
            "once" if len(spans) == 1 else f"{len(spans)} times",
        )
        lines.append(f"It was **preempted {times}**, for {_time(lost)} in all: others needed its blocks.")
    return lines


def _why(result: Result, i: int, queued: float) -> str:
    if queued <= 0:
        return ": it was taken up at once"
    r, series = result.records, result.series[max(int(result.records.replica[i]), 0)]
    points = series.points()
    begin, end = r.arrival_time[i], r.first_scheduled_time[i]
    inside = (points["time"] + points["span"] >= begin) & (points["time"] <= end)
    if not inside.any():
        return ""
    usage = float(points["kv_blocks_used"][inside].mean()) / max(series.num_gpu_blocks, 1)
    if usage > KV_FULL:
        return f", mostly for KV memory: the cache was {100 * usage:.0f} % full meanwhile"
    running, most = float(points["num_running"][inside].mean()), _most_running(result)
    if most and running > FULL_BATCH * most:
        return f", mostly for a place in the batch: {running:,.0f} of at most {most:,} requests were in it"
    ahead = (r.arrival_time < begin) & (r.replica == r.replica[i]) & (r.first_token_time > begin)
    tokens = int(r.input_length[ahead].sum())
    before = f"{int(ahead.sum())} earlier requests with {tokens:,} prompt tokens were not done with theirs"
    reason = before if tokens else "a step was under way"
    return f", mostly for its turn: {reason}; the KV cache was {100 * usage:.0f} % full"


def _most_running(result: Result) -> int:
    """The system's limit of requests in the batch, whatever it calls it; 0 where it has none."""
    limits = result.resolved.limits
    return int(next((limits[name] for name in BATCH_LIMITS if limits.get(name)), 0))


def _cached(tokens: int) -> str:
    return f", {tokens:,} of them found in the prefix cache," if tokens else ""


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"
