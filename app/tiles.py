"""The headline numbers of a run as tiles, and whether it meets its objectives."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import streamlit as st

from simulator import Result
from simulator.results import LATENCIES, METRICS, Summary
from simulator.results.metric import Number
from simulator.results.table import format_value
from simulator.results.tiles import TILES, TIME, Tile, scaled_time

__all__ = ["WORTH_A_COLOUR", "Verdict", "draw_tiles", "draw_verdicts", "verdicts"]

FORMULAS = {m.tag: m.formula for m in METRICS} | {m.tag: m.formula for m in LATENCIES}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "End to end"}
WORTH_A_COLOUR = 0.01
REQUIRED = 99
"""Percent of the finished requests that must meet an objective."""


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
    """The tiles of the report in one piece; with *base*, the change against it."""
    summary, before = result.summary, None if base is None else base.summary
    known = [tile for tile in TILES if summary.values.get(tile.key) is not None]
    st.html(f'<div class="tiles">{"".join(_tile(tile, summary, before) for tile in known)}</div>')


def _tile(tile: Tile, summary: Summary, base: Summary | None) -> str:
    change = None if base is None else _change(summary[tile.key], base.values.get(tile.key))
    formula = _formula(tile.key)
    help = f'<span class="help" tabindex="0" role="note" aria-label="{escape(formula)}">?</span>'
    value = escape(_text(summary[tile.key], tile.display, tile.unit))
    below = _context(tile, summary) or "" if change is None else f"{100 * change:+.1f} % vs. pinned"
    judged = "" if change is None else _judged(tile.key, change)
    return (
        f'<dl class="tile"><dt>{escape(tile.label)}{help if formula else ""}</dt><dd class="value">{value}</dd>'
        f'<dd class="context {judged}">{escape(below)}</dd></dl>'
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


def _change(value: Number, before: Number) -> float | None:
    """Relative change, where there is one."""
    if value is None or not before or not np.isfinite(value) or not np.isfinite(before):
        return None
    return value / before - 1


def _judged(key: str, change: float) -> str:
    """Whether a reader is glad of the change."""
    less = key.endswith("_ms") or key in ("mean_num_waiting", "preemptions")
    more = key.endswith(("throughput", "goodput"))
    if not (less or more) or abs(change) < WORTH_A_COLOUR:
        return ""
    return "better" if (change > 0) == more else "worse"


def _formula(key: str) -> str:
    tag = key.removesuffix("_ms").split("_", 1)[-1] if key.endswith("_ms") else key
    return FORMULAS.get(tag) or FORMULAS.get(key) or ""
