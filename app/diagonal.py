"""The plane in which two numbers for the same thing are held against each other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

__all__ = ["MARGIN", "plane"]

MARGIN = 0.2
"""Of the band beside the diagonal."""
WIDE = 100
"""From where powers of ten are ticks enough; below, 2 and 5 as well."""


def plane(values: Sequence[float]) -> go.Figure:
    """Two logarithmic axes as wide as *values*, the line on which both agree and, dotted, `MARGIN` beside it."""
    figure, low, high = go.Figure(), min(values) / 1.5, max(values) * 1.5
    for factor, dash in ((1.0, "solid"), (1 + MARGIN, "dot"), (1 / (1 + MARGIN), "dot")):
        line = {"color": "rgba(128,128,128,.6)", "width": 1, "dash": dash}
        ends = [low * factor, high * factor]
        figure.add_scatter(x=[low, high], y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    ticks = 1 if high > WIDE * low else "D2"
    figure.update_xaxes(type="log", dtick=ticks)
    figure.update_yaxes(type="log", dtick=ticks)
    figure.update_layout(
        height=460, margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"orientation": "h", "y": -0.15}
    )
    return figure
