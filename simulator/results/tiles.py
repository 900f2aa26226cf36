"""The headline numbers of a report, one tile each."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from simulator.results.summary import Summary
from simulator.results.table import format_value


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
    Tile("TTFT, median", "median_ttft_ms", "ms", ",.1f", (("p99", "p99_ttft_ms", ",.1f"),)),
    Tile("TPOT, median", "median_tpot_ms", "ms", ",.2f", (("p99", "p99_tpot_ms", ",.2f"),)),
    Tile("ITL, p99", "p99_itl_ms", "ms", ",.2f", (("median", "median_itl_ms", ",.2f"),)),
    Tile("End to end, median", "median_e2el_ms", "ms", ",.0f", (("p99", "p99_e2el_ms", ",.0f"),)),
    Tile("Batch size, mean", "mean_batch_size", "requests", ",.1f", (("peak", "max_batch_size", ",d"),)),
    Tile("Queue, mean", "mean_num_waiting", "requests", ",.1f", (("peak", "max_num_waiting", ",d"),)),
    Tile(
        "KV cache in use, peak", "kv_cache_usage_max", "%", ".1%", (("mean", "kv_cache_usage_mean", ".1%"),)
    ),
    Tile("Prefix cache hits", "prefix_cache_hit_rate", "%", ".1%", (("tokens", "cached_tokens", ",d"),)),
    Tile("Preemptions", "preemptions", "", ",d"),
)


def tiles_html(summary: Summary) -> str:
    """The grid of tiles; a tile whose number was not asked for is left out."""
    known = [tile for tile in TILES if summary.values.get(tile.key) is not None]
    return f'<div class="tiles">{"".join(_tile(tile, summary) for tile in known)}</div>'


def _tile(tile: Tile, summary: Summary) -> str:
    value = format_value(summary[tile.key], tile.display)
    unit = f"<small>{escape(tile.unit)}</small>" if tile.unit else ""
    return (
        f'<div class="tile"><div class="label">{escape(tile.label)}</div>'
        f'<div class="value">{value}{unit}</div><div class="more">{_context(tile, summary)}</div></div>'
    )


def _context(tile: Tile, summary: Summary) -> str:
    """The interval of the number, if it has one, and the numbers beside it."""
    parts = []
    if summary.intervals is not None and tile.key in summary.intervals.values:
        low, high = (
            format_value(v, tile.display.replace("d", ".1f")) for v in summary.intervals.values[tile.key]
        )
        parts.append(f"{summary.intervals.level:.0%} interval {low} to {high}")
    for word, key, display in tile.more:
        if summary.values.get(key) is not None:
            percent = " %" if "%" in display else ""
            parts.append(f"{word} {format_value(summary[key], display)}{percent}")
    return escape(" · ".join(parts))
