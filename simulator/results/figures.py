"""The figures of a report: distributions of latency, the run over time, where the time goes.

Every figure is drawn from at most a few thousand numbers, whatever the size of the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.results.latencies import LATENCIES
from simulator.results.series import StepSeries
from simulator.results.summary import Summary

CDF_POINTS = 400
CURVE_POINTS = 400
PANELS = (("Batch", "requests"), ("Queue", "requests"), ("KV cache", "% of blocks"), ("Tokens", "tokens/s"))
TIME_UNITS = ((600.0, 1.0, "s"), (14_400.0, 60.0, "min"), (math.inf, 3600.0, "h"))
"""(longest run in s, seconds per unit, unit) of a time axis."""
SHOWN_LATENCIES = ("ttft", "tpot", "itl", "e2el")
PALETTE = ("#2f6fde", "#e08a1e", "#2a9d72", "#b6479b", "#6b7a90", "#c8473d", "#7a5cd1", "#3a9fb5")
_GRID, _TEXT = "#e6eaf0", "#3c4858"
_Floats = npt.NDArray[np.float64]


def latency_figure(summary: Summary, template: str = "plotly_white") -> Any:
    """Cumulative distributions of TTFT, TPOT, ITL and E2EL in four panels; objectives of the goodput as
    lines.
    """
    shown = [m for m in LATENCIES if m.tag in SHOWN_LATENCIES]
    layout, traces = _grid(2, 2, tuple(m.title for m in shown), 0.19), []
    for i, m in enumerate(shown):
        seconds, share = _cdf(m.compute(summary.sample))
        factor, unit = (1.0, "s") if len(seconds) and seconds[-1] >= 10 else (1000.0, "ms")
        trace = _line(seconds * factor, share * 100, m.header, PALETTE[i]) | _place(i)
        trace["hovertemplate"] = f"%{{y:.1f}} % within %{{x:,.4g}} {unit}<extra></extra>"
        traces.append(trace)
        if m.tag in summary.goodput:
            traces.append(_objective(summary.goodput[m.tag] / 1000 * factor, unit) | _place(i))
        layout[_axis("x", i)] |= {"title": {"text": unit, "standoff": 4}, **_range(seconds)}
        layout[_axis("y", i)] |= {"range": [0, 102], "ticksuffix": " %"}
    return _styled(traces, layout, template, height=560)


def timeline_figure(summary: Summary, template: str = "plotly_white") -> Any:
    """Batch, queue, KV cache and token rates of all replicas over time, on one time axis."""
    layout, traces = _grid(len(PANELS), 1, tuple(title for title, _ in PANELS), 0.07, True), []
    end = max((s.end_time() for s in summary.sample.series), default=0.0)
    factor, unit = next((f, u) for limit, f, u in TIME_UNITS if not end >= limit)
    for s in summary.sample.series:
        curve = _averaged(s)
        for panel, (name, values, colour) in _curves(s, curve, len(summary.sample.series) > 1):
            trace = _line(curve["time"] / factor, values, name, colour) | _place(panel - 1)
            traces.append(trace | {"legend": _legend_of(panel)})
    for panel, (_, unit_of_values) in enumerate(PANELS, start=1):
        axis = layout[_axis("y", panel - 1)]
        axis |= {"title": {"text": unit_of_values}, "rangemode": "tozero"}
        place = {"orientation": "h", "x": 1, "xanchor": "right", "yanchor": "bottom"}
        layout[_legend_of(panel)] = {**place, "y": axis["domain"][1] + 0.003}
    layout[_axis("x", len(PANELS) - 1)]["title"] = {"text": f"time ({unit})"}
    return _styled(traces, layout, template, height=760, legend=True)


def breakdown_figure(time_breakdown: Mapping[str, float], template: str = "plotly_white") -> Any:
    """Share of the time of all iterations by operator family, largest first."""
    total = sum(time_breakdown.values())
    parts = sorted(time_breakdown.items(), key=lambda part: part[1])
    bars = {
        "type": "bar",
        "x": [100 * seconds / total for _, seconds in parts],
        "y": [name.replace("_", " ") for name, _ in parts],
        "text": [f"{100 * seconds / total:.1f} %" for _, seconds in parts],
        "customdata": [seconds for _, seconds in parts],
        "orientation": "h",
        "marker": {"color": PALETTE[0]},
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{customdata:,.3f} s<extra></extra>",
    }
    axes = {"xaxis": {"ticksuffix": " %", "title": {"text": "share of the time in iterations"}}, "yaxis": {}}
    return _styled([bars], axes, template, height=110 + 30 * len(parts))


def _grid(rows: int, columns: int, titles: tuple[str, ...], spacing: float, shared: bool = False) -> Any:
    """Layout of panels with titles over them, as plain values: a figure is checked once, when it is whole."""
    return copy.deepcopy(_cached_grid(rows, columns, titles, spacing, shared))


@cache
def _cached_grid(rows: int, columns: int, titles: tuple[str, ...], spacing: float, shared: bool) -> Any:
    from plotly.subplots import make_subplots

    grid = make_subplots(
        rows, columns, shared_xaxes=shared, subplot_titles=titles, vertical_spacing=spacing
    ).to_plotly_json()["layout"]
    grid.pop("template", None)
    panels = [name for name in grid if name.startswith("xaxis")]
    for name, title in zip(panels, grid["annotations"], strict=True):
        title |= {"x": grid[name]["domain"][0], "xanchor": "left", "font": {"size": 13}}
    return grid


def _axis(kind: str, panel: int) -> str:
    return f"{kind}axis{panel + 1}" if panel else f"{kind}axis"


def _place(panel: int) -> dict[str, str]:
    return {kind + "axis": f"{kind}{panel + 1}" if panel else kind for kind in "xy"}


def _curves(
    s: StepSeries, curve: dict[str, _Floats], several: bool
) -> list[tuple[int, tuple[str, _Floats, str]]]:
    """(panel, (name, values, colour)) of each curve; with several replicas, one per panel."""
    blocks = max(s.num_gpu_blocks, 1)
    own = [
        (1, ("requests in batch", curve["num_running"], PALETTE[0])),
        (2, ("requests waiting", curve["num_waiting"], PALETTE[1])),
        (3, ("in use", 100 * curve["kv_blocks_used"] / blocks, PALETTE[2])),
        (3, ("cached, reusable", 100 * curve["kv_blocks_cached"] / blocks, PALETTE[4])),
        (4, ("output", curve["output_rate"], PALETTE[3])),
        (4, ("prefill", curve["prefill_rate"], PALETTE[6])),
    ]
    if not several:
        return own
    colour = PALETTE[s.replica % len(PALETTE)]
    first = {panel: values for panel, (_, values, _) in reversed(own)}
    return [(panel, (f"replica {s.replica}", values, colour)) for panel, values in sorted(first.items())]


def _legend_of(panel: int) -> str:
    return "legend" if panel == 1 else f"legend{panel}"


def _objective(x: float, unit: str) -> dict[str, Any]:
    """A dotted vertical line at an objective of the goodput."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x, x],
        "y": [0, 102],
        "line": {"color": PALETTE[5], "dash": "dot", "width": 1.5},
        "hovertemplate": f"objective {x:,.4g} {unit}<extra></extra>",
    }


def _averaged(s: StepSeries) -> dict[str, _Floats]:
    """The series on at most `CURVE_POINTS` intervals of equal length: ``time`` (s, their middles) and
    averages.
    """
    points = s.points()
    if not len(points["time"]):
        return {name: np.empty(0) for name in (*points, "output_rate", "prefill_rate")}
    ends = points["time"] + points["span"]
    start = points["time"][0]
    edges = np.linspace(start, max(ends[-1], start + 1e-9), min(CURVE_POINTS, len(ends)) + 1)
    levels = ("num_running", "num_waiting", "kv_blocks_used", "kv_blocks_cached")
    amounts = {name: points[name] * points["span"] for name in levels}
    amounts |= {"output_rate": points["output_tokens"], "prefill_rate": points["prefill_tokens"]}
    width = np.diff(edges)
    curve = {
        name: _amounts_in(values, points["time"], ends, edges) / width for name, values in amounts.items()
    }
    return curve | {"time": edges[:-1] + width / 2}


def _amounts_in(amounts: _Floats, begin: _Floats, ends: _Floats, edges: _Floats) -> _Floats:
    """How much of *amounts*, each spread evenly from *begin* to *ends*, falls between successive *edges*."""
    times = np.column_stack((begin, ends)).ravel()
    before = np.cumsum(amounts) - amounts
    totals = np.column_stack((before, before + amounts)).ravel()
    return np.diff(np.interp(edges, times, totals))


def _cdf(distribution: Any) -> tuple[_Floats, _Floats]:
    """Seconds and the share of values up to them, at `CDF_POINTS` evenly spaced shares."""
    share = np.linspace(0, 1, CDF_POINTS)
    x = np.array([distribution.percentile(100 * p) for p in share])
    return (x, share) if not math.isnan(x[0]) else (np.empty(0), np.empty(0))


def _range(x: _Floats) -> dict[str, Any]:
    """A logarithmic axis where the values span more than two decades."""
    if len(x) and x[0] > 0 and x[-1] / x[0] > 100:
        return {"type": "log", "dtick": 1}
    return {"rangemode": "tozero"}


def _line(x: _Floats, y: _Floats, name: str, colour: str) -> dict[str, Any]:
    line = {"color": colour, "width": 1.8}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x.astype(np.float32),
        "y": y.astype(np.float32),
        "name": name,
        "line": line,
    }


def _styled(
    traces: list[dict[str, Any]], layout: dict[str, Any], template: str, height: int, legend: bool = False
) -> Any:
    import plotly.graph_objects as go

    for name, axis in layout.items():
        if name.startswith(("xaxis", "yaxis")):
            axis |= {"gridcolor": _GRID, "zerolinecolor": _GRID}
    style = {
        "height": height,
        "showlegend": legend,
        "template": template,
        "margin": {"l": 64, "r": 24, "t": 40 if "annotations" in layout else 8, "b": 48},
        "font": {"family": "Inter, system-ui, DejaVu Sans, sans-serif", "size": 12, "color": _TEXT},
        "hovermode": "x unified" if legend else "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return go.Figure(traces, {**layout, **style})
