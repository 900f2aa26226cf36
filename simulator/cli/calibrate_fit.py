"""``sim calibrate fit``: from measurement tables to the laws of hardware profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from calibrate.fit import Fitted
    from hwprofiles import Law

__all__ = ["fit"]


def fit(
    raw: Annotated[
        Path | None, typer.Argument(help="Folder of raw samples that `python -m calibrate measure` wrote.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of CSV tables of operator timings.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With RAW the profile (.yaml; default RAW/profile.yaml); with --data a folder."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With RAW: where the measured model is now, if it has moved.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="fitted: to a public data set; measured: by the engine on this device.")
    ] = "fitted",
    date: Annotated[str, typer.Option(help="ISO date of the measurements.")] = "2026-08-21",
) -> None:
    """Fit laws: RAW samples of the bundled engine become a profile, public tables (--data) one per device."""
    from simulator.errors import ConfigurationError

    if (raw is None) == (data is None):
        raise ConfigurationError("give either a folder of raw samples or --data, a folder of public tables")
    typer.echo(f"{'profile':20}{'law':34}{'rows':>6}{'mean %':>8}{'median %':>10}{'p90 %':>8}  held out")
    if raw is not None:
        fit_samples(raw, out or raw / "profile.yaml", model)
    elif data is not None:
        _fit_tables(data, out, kind, date)


def fit_samples(raw: Path, out: Path, model: str | None) -> None:
    """Fit raw samples and say what every law and whole steps are worth."""
    from calibrate.fit.raw import fit_raw
    from calibrate.report import write_fit_report

    fitted = fit_raw(raw, out, model)
    for law in fitted.profile.laws:
        _line(fitted.profile.name, law)
    if fitted.profile.validation:
        typer.echo(fitted.profile.validation)
    typer.echo(f"wrote {fitted.path}: use it as --gpu {fitted.path}")
    page = write_fit_report(raw, fitted.path, fitted.path.with_suffix(".html"), model)
    typer.echo(f"wrote {page}")


def _fit_tables(data: Path, out: Path | None, kind: str, date: str) -> None:
    """Public tables: one profile per device. Same tables, same bytes."""
    from calibrate.fit import fit_folder
    from simulator.errors import ConfigurationError

    if out is None:
        raise ConfigurationError("--data needs --out, the folder that profiles are written to")
    if kind not in ("fitted", "measured"):
        raise ConfigurationError(f"--kind {kind!r}: fitted or measured")
    for path in fit_folder(
        data, out, kind="measured" if kind == "measured" else "fitted", date=date, report=_report
    ):
        typer.echo(f"wrote {path}")


def _report(fitted: Fitted) -> None:
    _line(fitted.profile.name, fitted.law)


def _line(profile: str, law: Law) -> None:
    """One line per law: its error on shapes held out."""
    name = "/".join(filter(None, law.key))
    held_out = law.held_out
    if held_out is None:
        typer.echo(f"{profile:20}{name:34}  one shape only: nothing to hold out")
        return
    errors = "".join(
        f"{100 * value:{width}.1f}"
        for value, width in ((held_out.mean_ape, 8), (held_out.median_ape, 10), (held_out.p90_ape, 8))
    )
    typer.echo(f"{profile:20}{name:34}{held_out.rows:6}{errors}  {held_out.split}")
