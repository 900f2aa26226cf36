"""The figures of a report: distributions of latency, the run over time, where the time goes.

Every figure is drawn from at most a few thousand numbers, whatever the size of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.results.metrics import LATENCIES
from simulator.results.series import StepSeries
from simulator.results.summary import Summary

CDF_POINTS = 400
CURVE_POINTS = 1500
SHOWN_LATENCIES = ("ttft", "tpot", "itl", "e2el")
PALETTE = ("#2f6fde", "#e08a1e", "#2a9d72", "#b6479b", "#6b7a90", "#c8473d", "#7a5cd1", "#3a9fb5")
_GRID, _TEXT = "#e6eaf0", "#3c4858"
_Floats = npt.NDArray[np.float64]


def latency_figure(summary: Summary) -> Any:
    """Cumulative distributions of TTFT, TPOT, ITL and E2EL in four panels; objectives of the goodput as
    lines.
    """
    from plotly.subplots import make_subplots

    shown = [m for m in LATENCIES if m.tag in SHOWN_LATENCIES]
    figure = make_subplots(2, 2, subplot_titles=[m.title for m in shown], vertical_spacing=0.17)
    for i, m in enumerate(shown):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        x, share = _cdf(m.compute(summary.sample))
        trace = _line(x * 1000, share * 100, m.header, PALETTE[i])  # s -> ms, share -> %
        figure.add_trace(trace | {"hovertemplate": "%{y:.1f} % within %{x:,.4g} ms<extra></extra>"}, **place)
        figure.update_xaxes(title_text=f"{m.header} (ms)", **_range(x * 1000), **place)
        figure.update_yaxes(range=[0, 101], ticksuffix=" %", **place)
        if m.tag in summary.goodput:
            figure.add_vline(
                x=summary.goodput[m.tag],
                line={"color": PALETTE[5], "dash": "dot", "width": 1.5},
                annotation={"text": "objective", "font": {"size": 11}},
                **place,
            )
    return _styled(figure, height=560)


def timeline_figure(summary: Summary) -> Any:
    """Requests, KV cache and token rates of all replicas over time, on one time axis."""
    from plotly.subplots import make_subplots

    panels = ("Requests", "KV cache", "Token throughput")
    figure = make_subplots(3, 1, shared_xaxes=True, subplot_titles=panels, vertical_spacing=0.08)
    several = len(summary.sample.series) > 1
    for s in summary.sample.series:
        colours = PALETTE if not several else [PALETTE[s.replica % len(PALETTE)]] * len(PALETTE)
        suffix = f" (replica {s.replica})" if several else ""
        curve = _thinned(s)
        for row, name, values, colour in _curves(s, curve, colours):
            trace = _line(curve["time"], values, name + suffix, colour)
            trace |= {"line": trace["line"] | {"dash": "dot" if several and row[1] else "solid"}}
            figure.add_trace(trace, row=row[0], col=1)
    figure.update_xaxes(title_text="time (s)", row=3, col=1)
    figure.update_yaxes(title_text="requests", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="% of blocks", rangemode="tozero", row=2, col=1)
    figure.update_yaxes(title_text="tokens/s", rangemode="tozero", row=3, col=1)
    return _styled(figure, height=640, legend=True)


def breakdown_figure(time_breakdown: Mapping[str, float]) -> Any:
    """Share of the time of all iterations by operator family, largest first."""
    import plotly.graph_objects as go

    total = sum(time_breakdown.values())
    parts = sorted(time_breakdown.items(), key=lambda part: part[1])
    figure = go.Figure(
        go.Bar(
            x=[100 * seconds / total for _, seconds in parts],
            y=[name.replace("_", " ") for name, _ in parts],
            text=[f"{100 * seconds / total:.1f} %" for _, seconds in parts],
            customdata=[seconds for _, seconds in parts],
            orientation="h",
            marker={"color": PALETTE[0]},
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{customdata:,.3f} s<extra></extra>",
        )
    )
    figure.update_xaxes(ticksuffix=" %", title_text="share of the time in iterations")
    return _styled(figure, height=110 + 30 * len(parts))


def _curves(
    s: StepSeries, curve: dict[str, _Floats], colours: Any
) -> list[tuple[tuple[int, int], str, _Floats, str]]:
    """((panel, 0 or 1 within it), name, values, colour) of each curve of a replica."""
    blocks = max(s.num_gpu_blocks, 1)
    return [
        ((1, 0), "in batch", curve["num_running"], colours[0]),
        ((1, 1), "waiting", curve["num_waiting"], colours[1]),
        ((2, 0), "KV in use", 100 * curve["kv_blocks_used"] / blocks, colours[2]),
        ((2, 1), "KV cached, reusable", 100 * curve["kv_blocks_cached"] / blocks, colours[4]),
        ((3, 0), "output", curve["output_rate"], colours[3]),
        ((3, 1), "prefill", curve["prefill_rate"], colours[6]),
    ]


def _thinned(s: StepSeries) -> dict[str, _Floats]:
    """The series on at most `CURVE_POINTS` intervals of equal length; averages over each."""
    points = s.points()
    if not len(points["time"]):
        return {name: np.empty(0) for name in (*points, "output_rate", "prefill_rate")}
    ends = points["time"] + points["span"]
    count = min(CURVE_POINTS, len(ends))
    edges = np.linspace(points["time"][0], max(ends[-1], points["time"][0] + 1e-9), count + 1)
    width = np.diff(edges)
    levels = ("num_running", "num_waiting", "kv_blocks_used", "kv_blocks_cached")
    curve = {name: _averages(points[name] * points["span"], points["time"], ends, edges) for name in levels}
    for name, amount in (("output_rate", "output_tokens"), ("prefill_rate", "prefill_tokens")):
        curve[name] = _averages(points[amount], points["time"], ends, edges)
    return {name: values / width for name, values in curve.items()} | {"time": edges[:-1] + width / 2}


def _averages(amounts: _Floats, begin: _Floats, ends: _Floats, edges: _Floats) -> _Floats:
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


def _styled(figure: Any, height: int, legend: bool = False) -> Any:
    figure.update_layout(
        height=height,
        showlegend=legend,
        template="plotly_white",
        margin={"l": 64, "r": 24, "t": 44, "b": 48},
        font={"family": "Inter, system-ui, sans-serif", "size": 12, "color": _TEXT},
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
        hovermode="x unified" if legend else "closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_annotations(font_size=13)
    return figure
