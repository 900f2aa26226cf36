"""The headline numbers of a run as tiles, and whether it meets its objectives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st

from simulator import Result
from simulator.results import LATENCIES, METRICS, Summary
from simulator.results.metric import Number
from simulator.results.table import format_value
from simulator.results.tiles import TILES, TIME, Tile, scaled_time

__all__ = ["Verdict", "draw_tiles", "draw_verdicts", "verdicts"]

FORMULAS = {m.tag: m.formula for m in METRICS} | {m.tag: m.formula for m in LATENCIES}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "End to end"}
REQUIRED = 99
"""Percent of the finished requests that must meet an objective."""
GRID = (
    ".st-key-tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(9.6rem, 1fr)); gap: .6rem}"
)
"""As many tiles in a row as fit, on a tablet too."""


@dataclass(frozen=True)
class Verdict:
    """One objective and how the run stands to it, ms."""

    name: str
    limit_ms: float
    p99_ms: float
    share: float
    """Of the finished requests, the part within the limit."""

    @property
    def met(self) -> bool:
        return self.p99_ms <= self.limit_ms


def verdicts(summary: Summary) -> list[Verdict]:
    """One per objective, over the finished requests for which the latency is defined."""
    found = []
    for name, limit in summary.goodput.items():
        seconds = getattr(summary.sample, name)
        seconds = seconds[~np.isnan(seconds)]
        share = float((seconds * 1000 <= limit).mean()) if len(seconds) else 0.0
        p99 = float(np.percentile(seconds, REQUIRED) * 1000) if len(seconds) else float("inf")
        found.append(Verdict(NAMES[name], limit, p99, share))
    return found


def draw_verdicts(result: Result) -> None:
    """A badge per objective and one for everything else that a reader must know first."""
    parts = []
    for verdict in verdicts(result.summary):
        colour, icon, word = ("green", "check_circle", "met") if verdict.met else ("red", "cancel", "missed")
        limit, p99 = (" ".join(scaled_time(ms)) for ms in (verdict.limit_ms, verdict.p99_ms))
        text = f"{verdict.name} ≤ {limit} {word}: P99 {p99}, {100 * verdict.share:.1f} % within"
        parts.append(f":{colour}-badge[:material/{icon}: {text}]")
    if parts:
        st.markdown(" ".join(parts))


def draw_tiles(result: Result, base: Result | None = None) -> None:
    """The tiles of the report; with *base*, the change against it."""
    summary = result.summary
    st.html(f"<style>{GRID}</style>")
    with st.container(key="tiles"):
        for tile in TILES:
            if summary.values.get(tile.key) is not None:
                _draw(tile, summary, None if base is None else base.summary)


def _draw(tile: Tile, summary: Summary, base: Summary | None) -> None:
    change = None if base is None else _change(summary[tile.key], base.values.get(tile.key))
    st.metric(
        tile.label,
        _text(summary[tile.key], tile.display, tile.unit),
        delta=_context(tile, summary) if change is None else change,
        delta_color="off" if change is None else _colour(tile.key),
        delta_arrow="off" if change is None else "auto",
        help=_formula(tile.key),
        border=True,
        height="stretch",
    )


def _text(value: Number, display: str, unit: str = "") -> str:
    if display == TIME and value is not None and np.isfinite(value):
        return " ".join(scaled_time(value))
    shown = format_value(value, ".1f" if display == TIME else display)
    return f"{shown} {'%' if '%' in display else unit}".strip()


def _context(tile: Tile, summary: Summary) -> str | None:
    """The interval, or the number beside it."""
    if summary.intervals is not None and tile.key in summary.intervals.values:
        display = tile.display.replace("d", ".1f")
        low, high = (_text(v, display) for v in summary.intervals.values[tile.key])
        number, _, unit = low.partition(" ")
        low = number if unit and high.endswith(f" {unit}") else low
        return f"{summary.intervals.level:.0%}: {low} – {high}"
    for word, key, display in tile.more:
        if summary.values.get(key) is not None:
            return f"{word} {_text(summary[key], display)}"
    return None


def _change(value: Number, before: Number) -> str | None:
    if value is None or not before or not np.isfinite(value) or not np.isfinite(before):
        return None
    return f"{100 * (value / before - 1):+.1f} % vs. pinned"


def _colour(key: str) -> str:
    if key.endswith("_ms") or key in ("mean_num_waiting", "preemptions"):
        return "inverse"
    return "normal" if key.endswith(("throughput", "goodput")) else "off"


def _formula(key: str) -> str | None:
    tag = key.removesuffix("_ms").split("_", 1)[-1] if key.endswith("_ms") else key
    return FORMULAS.get(tag) or FORMULAS.get(key)
