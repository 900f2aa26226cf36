"""Figures for the dashboard: those of the report without their own colours of text, and a few of its own.

Streamlit gives a figure the colours of the theme, light or dark, where the figure does not insist on any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from simulator import Result
from simulator.results.figures import PALETTE

__all__ = ["TEMPLATE", "cdf_figure", "draw", "stacked_figure"]

CDF_POINTS = 300
TEMPLATE = "none"
"""What the theme will dress."""
CONFIG = {"displaylogo": False, "plotlyServerURL": "", "modeBarButtonsToRemove": ["lasso2d", "select2d"]}


def draw(figure: Any, key: str, roomy: bool = False, **options: Any) -> Any:
    """Show *figure* in the colours of the theme. *roomy*: its labels fit into its margins, nobody need try again."""
    if roomy:
        figure.update_xaxes(automargin=False)
        figure.update_yaxes(automargin=False)
    figure.update_layout(template=None, font=None, title_font={"color": None})
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", zerolinecolor="rgba(128,128,128,.3)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)", zerolinecolor="rgba(128,128,128,.3)")
    return st.plotly_chart(figure, key=key, config=CONFIG, **options)


def cdf_figure(results: Mapping[str, Result], latency: str, title: str) -> go.Figure:
    """Share of requests within a time, one curve per variant. *latency*: ``ttft``, ``tpot`` or ``e2el``."""
    figure = go.Figure()
    share = np.linspace(0, 100, CDF_POINTS)
    for i, (name, result) in enumerate(results.items()):
        seconds = getattr(result.summary.sample, latency)
        seconds = seconds[~np.isnan(seconds)]
        if not len(seconds):
            continue
        x = np.percentile(seconds, share) * 1000
        hover = f"{name}<br>%{{y:.1f}} % within %{{x:,.4g}} ms<extra></extra>"
        line = {"color": PALETTE[i % len(PALETTE)], "width": 2}
        figure.add_scatter(x=x, y=share, mode="lines", name=name, line=line, hovertemplate=hover)
    figure.update_xaxes(type="log", dtick="D2", title=f"{title} (ms)")
    figure.update_yaxes(range=[0, 102], ticksuffix=" %")
    figure.update_layout(
        height=330, margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"orientation": "h", "y": -0.3}
    )
    return figure


def stacked_figure(parts: Mapping[str, Mapping[str, float]], unit: str) -> go.Figure:
    """One bar per variant, made of named parts."""
    figure = go.Figure()
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    for i, name in enumerate(names):
        amounts = [values.get(name, 0.0) for values in parts.values()]
        hover = f"{name}: %{{x:,.4g}} {unit}<extra></extra>"
        colour = PALETTE[i % len(PALETTE)]
        figure.add_bar(
            y=list(parts), x=amounts, name=name, orientation="h", marker_color=colour, hovertemplate=hover
        )
    figure.update_layout(
        barmode="stack",
        height=120 + 42 * len(parts),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": -0.35},
    )
    figure.update_xaxes(title=unit)
    figure.update_yaxes(autorange="reversed")
    return figure
