"""The headline numbers of a report, one tile each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from simulator.results.metric import Number
from simulator.results.summary import Summary
from simulator.results.table import format_value

TIME = "time"  # display of a latency: milliseconds in the unit that suits their size


@dataclass(frozen=True)
class Tile:
    """A label, a number with its unit, and a line of context in terms of other numbers."""

    label: str
    key: str
    unit: str
    display: str = ",.1f"
    more: tuple[tuple[str, str, str], ...] = ()
    """(word before, key, format) of each number in the line of context."""


TILES = (
    Tile("Request throughput", "request_throughput", "req/s", ",.2f", (("finished", "completed", ",d"),)),
    Tile(
        "Output throughput",
        "output_throughput",
        "tok/s",
        ",.0f",
        (("peak", "max_output_tokens_per_s", ",.0f"),),
    ),
    Tile("Goodput", "request_goodput", "req/s", ",.2f"),
    Tile("TTFT, median", "median_ttft_ms", "", TIME, (("p99", "p99_ttft_ms", TIME),)),
    Tile("TPOT, median", "median_tpot_ms", "", TIME, (("p99", "p99_tpot_ms", TIME),)),
    Tile("ITL, p99", "p99_itl_ms", "", TIME, (("median", "median_itl_ms", TIME),)),
    Tile("End to end, median", "median_e2el_ms", "", TIME, (("p99", "p99_e2el_ms", TIME),)),
    Tile("Batch size, mean", "mean_batch_size", "req", ",.1f", (("peak", "max_batch_size", ",d"),)),
    Tile("Queue, mean", "mean_num_waiting", "req", ",.1f", (("peak", "max_num_waiting", ",d"),)),
    Tile("KV usage, peak", "kv_cache_usage_max", "%", ".1%", (("mean", "kv_cache_usage_mean", ".1%"),)),
    Tile("Prefix cache hits", "prefix_cache_hit_rate", "%", ".1%", (("tokens", "cached_tokens", ",d"),)),
    Tile("Preemptions", "preemptions", "", ",d"),
    Tile(
        "Tokens per draft checked",
        "spec_decode_acceptance_length",
        "tok",
        ",.2f",
        (("accepted (%)", "spec_decode_acceptance_rate", ".0f"),),
    ),
)


def tiles_html(summary: Summary) -> str:
    """The grid of tiles; a tile whose number was not asked for is left out."""
    known = [tile for tile in TILES if summary.values.get(tile.key) is not None]
    return f'<div class="tiles">{"".join(_tile(tile, summary) for tile in known)}</div>'


def scaled_time(milliseconds: float) -> tuple[str, str]:
    """Three significant digits and the unit: ms below a second, s below two minutes, then min."""
    factor, unit = 1.0, "ms"
    if milliseconds >= 1000:
        factor, unit = (1000.0, "s") if milliseconds < 120_000 else (60_000.0, "min")
    value = milliseconds / factor
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}", unit


def _text(value: Number, display: str) -> tuple[str, str]:
    """*value* and the unit that its format implies."""
    if display == TIME and value is not None and math.isfinite(value):
        return scaled_time(value)
    shown = ".1f" if display == TIME else display
    return format_value(value, shown), "%" if "%" in display else ""


def _tile(tile: Tile, summary: Summary) -> str:
    value, implied = _text(summary[tile.key], tile.display)
    unit = tile.unit or implied
    return (
        f'<div class="tile"><div class="label">{escape(tile.label)}</div>'
        f'<div class="value">{value}{f"<small>{escape(unit)}</small>" if unit else ""}</div>'
        f'<div class="more">{"<br>".join(map(escape, _context(tile, summary)))}</div></div>'
    )


def _context(tile: Tile, summary: Summary) -> list[str]:
    """Lines: the interval of the number, if it has one, and the numbers beside it."""
    parts = []
    if summary.intervals is not None and tile.key in summary.intervals.values:
        display = tile.display.replace("d", ".1f")  # bounds of a count are not whole
        low, high = (" ".join(_text(v, display)).strip() for v in summary.intervals.values[tile.key])
        parts.append(f"{summary.intervals.level:.0%}: {low} to {high}")
    for word, key, display in tile.more:
        if summary.values.get(key) is not None:
            parts.append(f"{word} {' '.join(_text(summary[key], display))}")
    return [part.strip() for part in parts]
