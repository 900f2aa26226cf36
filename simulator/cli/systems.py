"""``sim systems``: the serving systems there are."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["systems"]


def systems(
    name: Annotated[
        str | None, typer.Argument(help="Show one system with its options.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the serving systems, with the release each models and how well it is known."""
    from simulator.scheduling.system import find_system, list_systems

    chosen = list_systems() if name is None else [find_system(name)]
    if as_json:
        rows = [
            {k: getattr(s, k) for k in (*FIELDS, "source", "same_as", "options", "speculation")}
            | {"techniques": _techniques(s)}
            for s in chosen
        ]
        typer.echo(json.dumps(rows, indent=2))
    elif name is None:
        _print_table(chosen)
    else:
        _print_one(chosen[0])


FIELDS = ("name", "version", "status", "summary")


def _print_table(chosen: list) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in FIELDS:
        table.add_column(field)
    for system in chosen:
        same = f" (decides as {system.same_as})" if system.same_as else ""
        table.add_row(system.name, system.version, system.status, system.summary + same)
    Console().print(table)


def _print_one(system) -> None:  # type: ignore[no-untyped-def]
    typer.echo(f"{system.name} {system.version}: {system.summary}")
    typer.echo(f"  status   {system.status}")
    typer.echo(f"  source   {system.source}")
    if system.same_as:
        typer.echo(f"  decides as {system.same_as}")
    typer.echo(f"  options  {', '.join(system.options)}")
    typer.echo(
        f"  techniques  {', '.join(_techniques(system)) or 'none besides the switches of every system'}"
    )
    typer.echo(f"  speculation  {', '.join(system.speculation) or 'none, or none that is modelled'}")


def _techniques(system) -> list[str]:  # type: ignore[no-untyped-def]
    return [*sorted(system.techniques), *(["kv_cache false"] if system.uncached else [])]
