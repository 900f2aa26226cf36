"""``sim calibrate fit``: from measurement tables to the laws of hardware profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from calibrate.fit import Fitted

__all__ = ["fit"]


def fit(
    data: Annotated[Path, typer.Option(help="Folder of CSV tables of operator timings.")],
    out: Annotated[Path, typer.Option(help="Folder the profiles are written to; blocks there are kept.")],
    kind: Annotated[
        str, typer.Option(help="fitted: to a public data set; measured: by the engine on this device.")
    ] = "fitted",
    date: Annotated[str, typer.Option(help="ISO date of the measurements.")] = "2026-08-21",
) -> None:
    """Fit every operator law the tables hold and write one profile per device. Same tables, same bytes."""
    from calibrate.fit import fit_folder
    from simulator.errors import ConfigurationError

    if kind not in ("fitted", "measured"):
        raise ConfigurationError(f"--kind {kind!r}: fitted or measured")
    typer.echo(f"{'profile':20}{'law':34}{'rows':>6}{'mean %':>8}{'median %':>10}{'p90 %':>8}  held out")
    for path in fit_folder(
        data, out, kind="measured" if kind == "measured" else "fitted", date=date, report=_report
    ):
        typer.echo(f"wrote {path}")


def _report(fitted: Fitted) -> None:
    """One line per law: its error on shapes held out."""
    name = "/".join(filter(None, fitted.law.key))
    held_out = fitted.law.held_out
    if held_out is None:
        typer.echo(f"{fitted.profile.name:20}{name:34}  one shape only: nothing to hold out")
        return
    errors = "".join(
        f"{100 * value:{width}.1f}"
        for value, width in ((held_out.mean_ape, 8), (held_out.median_ape, 10), (held_out.p90_ape, 8))
    )
    typer.echo(f"{fitted.profile.name:20}{name:34}{held_out.rows:6}{errors}  {held_out.split}")
