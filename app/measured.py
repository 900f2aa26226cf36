"""What a calibrated profile was fitted to, beside what its laws say of the same shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import diagonal
from simulator.results.figures import PALETTE
from simulator.steptime.measured_points import MeasuredPoint

__all__ = ["figure", "table"]


def figure(points: Sequence[MeasuredPoint]) -> go.Figure:
    """Fitted over measured time, a colour per law; the diagonal is a perfect fit."""
    drawn = diagonal.plane([time * 1e6 for point in points for time in (point.measured, point.fitted)])
    for i, law in enumerate(dict.fromkeys(point.law for point in points)):
        own = [point for point in points if point.law == law]
        drawn.add_scatter(
            x=[point.measured * 1e6 for point in own],
            y=[point.fitted * 1e6 for point in own],
            mode="markers",
            name=law,
            marker={"color": PALETTE[i % len(PALETTE)], "size": 8, "opacity": 0.8},
            text=[_words(point) for point in own],
            hovertemplate="%{text}<br>measured %{x:,.4g} µs, fitted %{y:,.4g} µs<extra></extra>",
        )
    drawn.update_xaxes(title="measured (µs)")
    drawn.update_yaxes(title="fitted (µs)")
    return drawn


def table(points: Sequence[MeasuredPoint]) -> pd.DataFrame:
    """One row per law: how far it is from the measurements the profile carries, percent."""
    rows = []
    for law in dict.fromkeys(point.law for point in points):
        errors = np.array([100 * point.error for point in points if point.law == law])
        rows.append(
            {
                "law": law,
                "measurements": len(errors),
                "median (%)": round(float(np.median(np.abs(errors))), 1),
                "worst (%)": round(float(errors[np.abs(errors).argmax()]), 1),
            }
        )
    return pd.DataFrame(rows)


def _words(point: MeasuredPoint) -> str:
    shape = ", ".join(f"{name} {value:,g}" for name, value in point.shape.items())
    return f"{point.law}: {shape}<br>{100 * point.error:+.1f} %"
