"""``sim conform``: recorded decisions of real schedulers, replayed through ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["conform"]


def conform(
    files: Annotated[
        list[Path], typer.Argument(help="Recorded cases, *.json or *.json.gz.", show_default=False)
    ],
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only cases that differ, and the total.")
    ] = False,
) -> None:
    """Compare our decisions with recorded ones, iteration by iteration. Exit code 1 at any difference."""
    from simulator.conformance import check, load_case

    identical = 0
    for path in files:
        verdict = check(load_case(path))
        identical += verdict.identical
        if verdict.difference is not None:
            typer.echo(f"DIFFERS    {path.name}  {verdict.difference}")
        elif not quiet:
            typer.echo(f"identical  {path.name}  {verdict.steps} steps")
    typer.echo(f"{identical} of {len(files)} cases identical")
    if identical < len(files):
        raise typer.Exit(1)
