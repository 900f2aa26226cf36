"""Curves, points and their style, as plain plotly traces."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["laid_out", "line", "markers", "percent"]


def percent(value: float) -> str:
    """``+3.2 %``; nothing for NaN."""
    return "" if value != value else f"{100 * value:+.1f} %"


def line(x: Any, y: Any, name: str, colour: str, first: bool = True) -> dict[str, Any]:
    """A curve; in a figure with several panels only the *first* is in the legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": np.asarray(x, np.float32),
        "y": np.asarray(y, np.float32),
        "name": name,
        "legendgroup": name,
        "showlegend": first,
        "line": {"color": colour, "width": 1.8},
    }


def markers(x: Any, y: Any, name: str, colour: str) -> dict[str, Any]:
    """Points."""
    marker = {"color": colour, "size": 5, "opacity": 0.55}
    points = {"x": np.asarray(x, np.float32), "y": np.asarray(y, np.float32)}
    return {"type": "scattergl", "mode": "markers", **points, "name": name, "marker": marker}


def laid_out(figure: Any, height: int, legend: bool = True) -> Any:
    """*figure* in the style of the pages, *height* in pixels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        showlegend=legend,
        margin={"l": 64, "r": 24, "t": 56, "b": 48},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.09, "yanchor": "bottom"},
    )
    return figure
