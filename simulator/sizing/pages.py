"""The report of a directory, whatever made it: a run, a sizing or a sweep."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from simulator.errors import InputError, UnknownNameError
from simulator.sizing.report import page, sizing_html, sizing_markdown, table_html, table_markdown

__all__ = ["report_of"]

FORMATS = {"html": ".html", "markdown": ".md", "json": ".json"}
SWEEP_METRICS = (
    "completed",
    "request_throughput",
    "output_throughput",
    "request_goodput",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "p99_tpot_ms",
    "preemptions",
)
RUN_METRICS = (*SWEEP_METRICS, "rejected", "failed", "mean_e2el_ms", "p99_itl_ms", "kv_cache_usage_mean")


def report_of(directory: Path, to: str) -> tuple[str, str]:
    """(text, suffix of its file) of the report. Raises `InputError` where *directory* is none of the three."""
    if to not in FORMATS:
        raise UnknownNameError("report format", to, FORMATS)
    if (directory / "size.json").is_file():
        return _sizing(_json(directory / "size.json"), to), FORMATS[to]
    if (directory / "results.parquet").is_file():
        return _sweep(directory, to), FORMATS[to]
    if (directory / "summary.json").is_file():
        return _run(directory, to), FORMATS[to]
    if (directory / "study.json").is_file():
        raise InputError(directory, "holds a sweep that is not finished: run `sim sweep` again to go on")
    raise InputError(
        directory, "holds no summary.json (sim run), size.json (sim size) or results.parquet (sim sweep)"
    )


def _sizing(found: dict[str, Any], to: str) -> str:
    if to == "json":
        return _dump(found)
    return sizing_html(found) if to == "html" else sizing_markdown(found)


def _run(directory: Path, to: str) -> str:
    """The page of a run is made with the run; the other two are its summary."""
    summary = _json(directory / "summary.json")
    if to == "json":
        return _dump(summary)
    if to == "html":
        return (directory / "report.html").read_text(encoding="utf-8")
    rows = [(name, _number(summary[name])) for name in RUN_METRICS if summary.get(name) is not None]
    return f"# {summary['model_id']}: {summary['backend']}\n\n{table_markdown(('metric', 'value'), rows)}\n"


def _sweep(directory: Path, to: str) -> str:
    import pyarrow.parquet as pq

    rows = pq.read_table(directory / "results.parquet").to_pylist()
    if to == "json":
        return _dump({"runs": rows})
    axes = [name for name in rows[0] if name.startswith("point.")]
    metrics = [name for name in SWEEP_METRICS if any(row.get(name) is not None for row in rows)]
    headings = [*(name.removeprefix("point.") for name in axes), "seed", *metrics, "error"]
    cells = [[_number(row.get(name)) for name in [*axes, "seed", *metrics, "error"]] for row in rows]
    title, lines = f"A sweep of {len(rows)} runs", _best(rows, axes)
    if to == "markdown":
        listed = "\n".join(f"- {line}" for line in lines)
        return f"# {title}\n\n{listed}\n\n{table_markdown(headings, cells)}\n"
    found = "".join(f"<li>{escape(line)}</li>" for line in lines)
    body = f'<section><h2>Best points</h2><ul class="lines">{found}</ul></section>'
    body += f"<section><h2>Throughput against latency</h2>{_figure(rows, axes)}</section>"
    body += f"<section><h2>All runs</h2>{table_html(headings, cells)}</section>"
    return page(title, f"axes: {', '.join(name.removeprefix('point.') for name in axes)}", body)


def _best(rows: list[dict[str, Any]], axes: list[str]) -> list[str]:
    """The point that is best by each of a few metrics."""
    wanted = (
        ("output_throughput", True),
        ("request_goodput", True),
        ("p99_ttft_ms", False),
        ("p99_tpot_ms", False),
    )
    lines = []
    for name, high in wanted:
        known = [row for row in rows if row.get(name) is not None and not row.get("overloaded")]
        if known:
            best = (max if high else min)(known, key=lambda row: row[name])
            lines.append(
                f"{'highest' if high else 'lowest'} {name}: {best[name]:.4g} at {_point(best, axes)}"
            )
    failed = sum(row["error"] is not None for row in rows)
    overloaded = sum(bool(row.get("overloaded")) for row in rows)
    return [*lines, f"{failed} runs were impossible, {overloaded} overloaded (left out above)"]


def _point(row: dict[str, Any], axes: list[str]) -> str:
    return ", ".join(f"{name.removeprefix('point.')} {row[name]}" for name in axes)


def _figure(rows: list[dict[str, Any]], axes: list[str]) -> str:
    import plotly.graph_objects as go

    shown = [row for row in rows if row.get("p99_ttft_ms") is not None and not row.get("overloaded")]
    figure = go.Figure(
        go.Scatter(
            x=[row["p99_ttft_ms"] for row in shown],
            y=[row["output_throughput"] for row in shown],
            text=[_point(row, axes) for row in shown],
            mode="markers",
        )
    )
    figure.update_layout(
        template="plotly_white", height=380, xaxis_title="P99 TTFT, ms", yaxis_title="output tokens/s"
    )
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}))


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"is not JSON: {error}") from None
    return loaded


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
