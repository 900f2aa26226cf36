"""``sim sweep``: every run of a study, on local processes or a Dask cluster, resumable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sweep"]


def sweep(
    study: Annotated[
        Path, typer.Argument(help="YAML file with trace, base, and grid or samples.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Directory of the results; a sweep that was killed goes on in it.")
    ],
    workers: Annotated[int, typer.Option(help="Local processes.")] = 2,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler instead, tcp://HOST:PORT.")
    ] = None,
) -> None:
    """Run every point of STUDY and collect the results in Parquet."""
    from simulator.sizing.pool import local_executor
    from simulator.sizing.study import Study
    from simulator.sizing.sweep import dask_executor, failures, run_study

    loaded = Study.load(study)
    if cluster is not None:
        with dask_executor(cluster):  # a wrong address should say so at once
            pass
    make = (lambda: dask_executor(cluster)) if cluster is not None else (lambda: local_executor(workers))
    start: list[int] = []

    def say(done: int, total: int) -> None:
        if not start:
            start.append(done)
            typer.echo(f"{total} runs, {done} already there" if done else f"{total} runs")
        elif sys.stderr.isatty():
            typer.echo(f"\r{done} of {total}", err=True, nl=done == total)

    results = run_study(loaded, out, make, progress=say)
    impossible = failures(results)
    if impossible:
        count = len(impossible)
        typer.echo(
            f"{count} of {len(loaded.runs)} runs could not be, see their `error`; the first: {impossible[0]}"
        )
    typer.echo(f"written to {results}")
