"""``sim calibrate fit-serving``: from measured serving runs to what engines add to their operators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["fit_serving"]


def fit_serving(
    data: Annotated[Path, typer.Option(help="Folder with closed-loop tables (CSV).")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; the bundled one by default.", show_default=False)
    ] = None,
    date: Annotated[str, typer.Option(help="ISO date of the measurements.")] = "2026-08-21",
) -> None:
    """Fit the costs of every engine in the tables and write them. Same tables, same bytes.

    The error on configurations and on whole (gpu, system, model) groups that the fit has not seen is printed and
    written with them.
    """
    from calibrate.fit.serving_file import fit_engine_costs, gather_terms, write_engine_costs
    from calibrate.serving import read_closed_loops

    terms = gather_terms(read_closed_loops(data))
    content = fit_engine_costs(terms, date)
    _report(content)
    path = out or _bundled()
    write_engine_costs(content, path)
    typer.echo(f"wrote {path}")


def _bundled() -> Path:
    from importlib.resources import files

    return Path(str(files("simulator.steptime") / "data" / "engine_costs.yaml"))


def _report(content: dict[str, Any]) -> None:
    typer.echo(f"{'held out':38}{'':14}{'rows':>6}{'mean %':>8}{'median %':>10}{'p90 %':>8}")
    for split, kinds in content["held_out"].items():
        for kind, errors in kinds.items():
            values = [100 * errors[name] for name in ("mean_ape", "median_ape", "p90_ape")]
            typer.echo(
                f"{split:38}{kind:14}{errors['rows']:6}{values[0]:8.1f}{values[1]:10.1f}{values[2]:8.1f}"
            )
