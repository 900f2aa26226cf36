"""The KV cache as a map of its blocks: whose they are, who shares them, which are free but still matchable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.occupancy import Occupancy
from simulator.results.figures import PALETTE

__all__ = ["KINDS", "figure", "table"]

WIDTH = 128
MOST_BLOCKS = 20_000
"""Blocks that are drawn, the first ones: numbers are handed out from the lowest."""
MOST_NAMES = 4
KINDS = ("free", "free, content still matchable", "held by one request", "shared", "the chosen request's")
COLOURS = ("rgba(128,128,128,.13)", "#c9d8f5", PALETTE[2], PALETTE[1], PALETTE[0])


def figure(seen: Occupancy, chosen: str) -> go.Figure:
    """One cell per block, rows of `WIDTH`, up to the last one that is not free."""
    holders, tables = seen.holders, seen.tables or {}
    last = max([*holders, *seen.cached_ids, WIDTH - 1])
    shown = min(-(-(last + 1) // WIDTH) * WIDTH, MOST_BLOCKS)
    kind, text = np.zeros(shown), np.array([f"block {i}: free" for i in range(shown)], object)
    own = set(tables.get(chosen, ()))
    for block in seen.cached_ids:
        if block < shown:
            kind[block], text[block] = 1, f"block {block}: free, a prompt may still match it"
    for block, names in holders.items():
        if block < shown:
            kind[block] = 4 if block in own else 3 if len(names) > 1 else 2
            text[block] = f"block {block}: {_names(names)}"
    heat = go.Heatmap(
        z=_rows(kind),
        text=_rows(text),
        hovertemplate="%{text}<extra></extra>",
        showscale=False,
        zmin=0,
        zmax=len(KINDS) - 1,
        colorscale=_scale(),
        xgap=1,
        ygap=1,
    )
    drawn = go.Figure([heat, *_legend()])
    rows = -(-shown // WIDTH)
    drawn.update_layout(
        height=min(max(70 + 9 * rows, 130), 700),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": -0.05, "yanchor": "top"},
        xaxis={"visible": False, "range": [-0.5, WIDTH - 0.5]},
        yaxis={"visible": False, "range": [rows - 0.5, -0.5]},
    )
    return drawn


def table(seen: Occupancy, chosen: str) -> pd.DataFrame:
    """One row per request that holds blocks, the chosen one first, then by blocks."""
    tables = seen.tables or {}
    order = sorted(tables, key=lambda name: (name != chosen, -len(tables[name])))
    shared = {block for block, names in seen.holders.items() if len(names) > 1}
    return pd.DataFrame([_row(seen, name, shared) for name in order])


def _row(seen: Occupancy, name: str, shared: set[int]) -> dict[str, object]:
    blocks, sharers = (seen.tables or {})[name], seen.sharers(name)
    return {
        "request": name,
        "blocks": len(blocks),
        "of them shared": len(shared.intersection(blocks)),
        "shared with": _names(list(sharers)),
        "tokens": seen.tokens[name],
        "unfilled places": seen.unfilled(name),
        "block numbers": _ranges(blocks),
    }


def _names(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _ranges(blocks: Any) -> str:
    """Block numbers in the order of the table, neighbours joined: ``0–4, 17, 9–8``."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block - runs[-1][1] in (1, -1) and _goes_on(runs[-1], block):
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _goes_on(run: list[int], block: int) -> bool:
    return run[0] == run[1] or (run[1] > run[0]) == (block > run[1])


def _rows(values: Any) -> Any:
    missing = -len(values) % WIDTH
    filler = [""] if values.dtype == object else [np.nan]
    return np.concatenate((values, np.array(filler * missing, values.dtype))).reshape(-1, WIDTH)


def _scale() -> list[tuple[float, str]]:
    steps = len(COLOURS)
    return [(edge / steps, colour) for i, colour in enumerate(COLOURS) for edge in (i, i + 1)]


def _legend() -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": colour, "symbol": "square", "size": 10},
            name=name,
            hoverinfo="skip",
        )
        for name, colour in zip(KINDS, COLOURS, strict=True)
    ]
