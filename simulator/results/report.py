"""The report: one HTML file that opens anywhere, without a network.

Top to bottom in the order of a reader's questions: what was simulated, may I trust it, how does it feel to
users, what happened over time, where does the time go, what became of the requests, and on what does it all
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from simulator.results.figures import breakdown_figure, latency_figure, timeline_figure
from simulator.results.latencies import LATENCIES
from simulator.results.records import STATUS
from simulator.results.summary import Summary, percentile_word
from simulator.results.table import format_table, format_value
from simulator.results.tiles import tiles_html

PLOT_CONFIG = {"responsive": True, "plotlyServerURL": "", "displayModeBar": False}


class Table(NamedTuple):
    """A section of a report; *rows* are cells as they are shown."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def report_html(
    summary: Summary,
    *,
    title: str,
    config: Mapping[str, Any],
    provenance: Sequence[str] = (),
    defaults: Sequence[str] = (),
    warnings: Sequence[str] = (),
    time_breakdown: Mapping[str, float] | None = None,
    tables: Sequence[Table] = (),
) -> str:
    """The page as text; arguments as in `Run`."""
    sections = [
        alerts(summary, warnings),
        tiles_html(summary),
        _figure_section(
            "Latency",
            "Share of requests (for ITL: of all gaps between tokens) within a time; dotted: the objective.",
            latency_figure(summary),
            latency_table(summary),
        ),
        _figure_section(
            "Over time", "Averages over equal intervals; hover to read values.", timeline_figure(summary)
        ),
        _breakdown_section(time_breakdown or {}),
        section("What became of the requests", fate_table(summary)),
        *(section(table.heading, table_html(table), table.note) for table in tables),
        section("What the numbers rest on", lines(provenance, "Nothing was stated.")),
        section("Defaults that were chosen", lines(defaults, "None: everything was given.")),
        section("Configuration", config_table(config)),
        folded("Benchmark table", f"<pre>{escape(_table(summary))}</pre>"),
    ]
    return _page(title, subtitle(summary), "\n".join(part for part in sections if part))


def subtitle(summary: Summary) -> str:
    """Size of the run in a sentence."""
    count = summary["injected"] or 0
    hours = (summary["duration"] or 0.0) / 3600
    span = f"{hours:,.1f} h" if hours >= 1 else f"{hours * 3600:,.1f} s"
    return f"{count:,} requests over {span} of simulated time, {summary['completed']:,} finished"


def alerts(summary: Summary, warnings: Sequence[str]) -> str:
    """Overload and warnings, in boxes above everything else."""
    parts = []
    if summary.overload is not None and summary.overload.overloaded:
        parts.append(f'<div class="alert overload">{escape(summary.overload.text())}</div>')
    if warnings:
        parts.append(f'<div class="alert warning"><b>Read with care</b>{lines(warnings, "")}</div>')
    return "\n".join(parts)


def latency_table(summary: Summary) -> str:
    """Mean, median, percentiles and maximum of every latency, ms."""
    columns = ["mean", "median", *(percentile_word(p) for p in summary.percentiles if p != 50), "max"]
    head = "".join(f'<th class="number">{column}</th>' for column in columns)
    rows = [f"<tr><th>ms</th>{head}</tr>"]
    for m in LATENCIES:
        values = (format_value(summary[f"{column}_{m.tag}_ms"], ",.2f") for column in columns)
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        rows.append(f"<tr><td>{escape(m.title)}</td>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def table_html(table: Table) -> str:
    """*table*; cells that begin with a digit, a sign or a $ are aligned to the right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _cell(value: str) -> str:
    number = value.lstrip("$-").replace(",", "").replace(".", "", 1).removesuffix(" %").isdecimal()
    return f'<td class="number">{escape(value)}</td>' if number else f"<td>{escape(value)}</td>"


def fate_table(summary: Summary) -> str:
    """Requests by status with the reasons: the conservation law of the run, written out."""
    rows = []
    for name in STATUS:
        number = summary["completed" if name == "finished" else name] or 0
        reasons = "; ".join(f"{why} ({n:,})" for why, n in summary.reasons.get(name, {}).items())
        if number or name in ("finished", "rejected", "failed"):
            cells = f'<td class="number">{number:,}</td><td>{escape(reasons)}</td>'
            rows.append(f"<tr><td>{name.replace('_', ' ')}</td>{cells}</tr>")
    total = f'<tr><th>injected</th><th class="number">{summary["injected"] or 0:,}</th><th></th></tr>'
    return f'<table class="fate">{"".join(rows)}{total}</table>'


def config_table(config: Mapping[str, Any]) -> str:
    """Every leaf of *config* with its dotted name."""
    rows = "".join(
        f'<tr><td class="key">{escape(key)}</td><td>{escape(str(value))}</td></tr>'
        for key, value in leaves(config)
    )
    return f'<div class="wide"><table>{rows}</table></div>'


def leaves(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested mappings."""
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        found += leaves(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def lines(texts: Sequence[str], none: str) -> str:
    """A list, or *none* in its place."""
    if not texts:
        return f'<p class="note">{escape(none)}</p>'
    return f'<ul class="lines">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def section(heading: str, body: str, note: str = "") -> str:
    """A titled box."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{below}{body}</section>"


def folded(heading: str, body: str) -> str:
    """A box that opens on demand."""
    return f"<section><details><summary>{escape(heading)}</summary>{body}</details></section>"


def _figure_section(heading: str, note: str, figure: Any, below: str = "") -> str:
    html = figure.to_html(full_html=False, include_plotlyjs=False, config=PLOT_CONFIG)
    return section(heading, html + below, note)


def _breakdown_section(time_breakdown: Mapping[str, float]) -> str:
    if sum(time_breakdown.values()) <= 0:
        return ""
    seconds = sum(time_breakdown.values())
    note = f"{seconds:,.1f} s in iterations, all replicas, by operator family."
    return _figure_section("Where the time goes", note, breakdown_figure(time_breakdown))


def _table(summary: Summary) -> str:
    return format_table(summary, percentile_metrics=("ttft", "tpot", "itl", "e2el"))


def _page(title: str, subtitle: str, body: str) -> str:
    from plotly.offline import get_plotlyjs

    style = files("simulator.results").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
<script id="plotly">{get_plotlyjs()}</script>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
{body}
<footer>Simulated, not measured. Latencies count from the arrival of a request;
definitions are those of vLLM's benchmark.</footer>
</main>
</body>
</html>
"""
