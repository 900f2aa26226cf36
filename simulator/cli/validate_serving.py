"""``sim validate serving``: the simulator against measured serving runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from calibrate.serving import ServingScore

__all__ = ["serving"]

VIEWS = (("metric", "system"), ("metric", "gpu"), ("metric", "dtype"), ("metric", "load_type"), ("metric",))


def serving(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="closed_loop, published CSV or a folder of vLLM logs."),
    ],
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the groups as a list of objects.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write predicted against measured as HTML.", show_default=False)
    ] = None,
    rows_path: Annotated[
        Path | None, typer.Option("--rows", help="Write every prediction as CSV.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many cases of a file, evenly spaced.")
    ] = None,
) -> None:
    """Run every measured configuration through the simulator as what it was; print the error.

    The layout is recognised by the columns. Rows that cannot be simulated are counted by reason.
    """
    from calibrate.serving import read_cases, score_cases, summarize_serving, thin

    found = [read_cases(path) for path in files]
    cases = [case for part in found for case in thin(part.cases, limit)]
    score = _with_bar(score_cases, cases)
    groups = summarize_serving(score.rows)
    _print(score, groups)
    _print_coverage(score.rows)
    for part in found:
        score.skipped.update(part.skipped)
    for reason, count in sorted(score.skipped.items()):
        typer.echo(f"{count} rows not simulated: {reason}")
    for note, count in sorted(score.notes.items()):
        typer.echo(f"{count} cases: {note}")
    rows = sum(part.rows for part in found)
    typer.echo(f"{len(score.rows)} measured values of {len(cases)} cases simulated; {rows} rows read")
    if json_path is not None:
        json_path.write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
    if rows_path is not None:
        score.rows.to_csv(rows_path, index=False)
    if plot is not None:
        _draw(score.rows, plot)


def _with_bar(score_cases: Callable[..., ServingScore], cases: Sequence[Any]) -> ServingScore:
    """*score_cases* with a bar on a terminal."""
    import sys

    if not sys.stderr.isatty():
        return score_cases(cases)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=len(cases))
        return score_cases(cases, progress=lambda: bar.advance(task))


def _print(score: ServingScore, groups: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from calibrate.serving import summarize_serving
    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("metric", "gpu", "system", "dtype", "load type"):
        table.add_column(name)
    for name in ("rows", "mean %", "median %", "p90 %"):
        table.add_column(name, justify="right")
    views = [summarize_serving(score.rows, by) for by in VIEWS] if len(score.rows) else []
    for group in [*groups, *(group for view in views for group in view)]:
        errors = [f"{100 * group[name]:.1f}" for name in ("mean_ape", "median_ape", "p90_ape")]
        names = [str(group.get(name, "")) for name in ("metric", "gpu", "system", "dtype", "load_type")]
        table.add_row(*names, str(group["rows"]), *errors)
    console().print(table)


def _print_coverage(rows: pd.DataFrame) -> None:
    known = rows.dropna(subset=["covered"])
    for metric, part in known.groupby("metric", sort=True):
        share = 100 * part["covered"].mean()
        typer.echo(f"{metric}: the 90 % interval holds {share:.1f} % of {len(part)} measured values")


def _draw(rows: pd.DataFrame, path: Path) -> None:
    """Predicted against measured, one panel per unit, both axes logarithmic."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for (metric, system), part in rows.groupby(["metric", "system"], sort=True):
        text = part["gpu"] + " " + part["label"]
        figure.add_scattergl(
            x=part["measured"],
            y=part["predicted"],
            text=text,
            mode="markers",
            name=f"{metric} {system}",
            marker_size=4,
        )
    if len(rows):
        ends = [float(rows["measured"].min()), float(rows["measured"].max())]
        figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": "black", "width": 1})
    figure.update_xaxes(type="log", title="measured (s, tokens/s or requests/s)")
    figure.update_yaxes(type="log", title="predicted")
    figure.write_html(path, include_plotlyjs=True)
