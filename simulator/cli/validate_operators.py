"""``sim validate operators``: the shipped profiles against measured operator times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["operators"]


def operators(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.csv...", help="Operator timings.")],
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the groups as a list of objects.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write predicted against measured as HTML.", show_default=False)
    ] = None,
) -> None:
    """Predict every row with the profile of its gpu; print the error by operator, device and dtype.

    The layout is recognised by the columns. Rows that cannot be predicted are counted by reason. Rows that a
    benchmark served from L2 cache form groups of their own.
    """
    from calibrate.fit.score import score_frames, summarize
    from calibrate.tables import read_tables

    score = score_frames(read_tables(files))
    groups = summarize(score.rows)
    _print(summarize(score.rows, ("operator", "gpu", "dtype", "variant")), score.rows)
    for reason, count in sorted(score.skipped.items()):
        typer.echo(f"{count} rows not predicted: {reason}")
    typer.echo(f"{len(score.rows)} of {len(score.rows) + sum(score.skipped.values())} rows predicted")
    if json_path is not None:
        json_path.write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        _draw(score.rows, plot)


def _print(groups: list[dict[str, Any]], rows: pd.DataFrame) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("operator", "gpu", "dtype"):
        table.add_column(name)
    for name in ("rows", "mean %", "median %", "p90 %"):
        table.add_column(name, justify="right")
    table.add_column("law")
    for group in groups:
        operator = "/".join(filter(None, (group["operator"], group["variant"])))
        errors = [f"{100 * group[name]:.1f}" for name in ("mean_ape", "median_ape", "p90_ape")]
        table.add_row(operator, group["gpu"], group["dtype"], str(group["rows"]), *errors, group["source"])
    console().print(table)
    if any("reason" in group for group in groups):
        typer.echo("*_l2_resident: " + next(group["reason"] for group in groups if "reason" in group))


def _draw(rows: pd.DataFrame, path: Path) -> None:
    """Predicted against measured, one colour per operator, both axes logarithmic."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for operator, part in rows.groupby("operator", sort=True):
        text = part["gpu"] + " " + part["dtype"] + " " + part["variant"]
        x, y = part["seconds"] * 1e6, part["predicted"] * 1e6
        figure.add_scattergl(x=x, y=y, text=text, mode="markers", name=str(operator), marker_size=3)
    if len(rows):
        ends = [float(rows["seconds"].min()) * 1e6, float(rows["seconds"].max()) * 1e6]
        figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": "black", "width": 1})
    figure.update_xaxes(type="log", title="measured, us")
    figure.update_yaxes(type="log", title="predicted, us")
    figure.write_html(path, include_plotlyjs=True)
