"""``sim reproduce``: the field's well-known claims, published and as simulated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["reproduce"]


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Which claims; all of them by default.", show_default=False)
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Show the claims, run nothing.")] = False,
    traces: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with ShareGPT*.json and Mooncake's conversation_trace.jsonl, where you have them; lengths "
            "with the published moments otherwise.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", show_default="one per core, at most 4")] = min(
        os.cpu_count() or 1, 4
    ),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print one table in Markdown.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Put that table into FILE, between its two markers.", show_default=False
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures there.", show_default=False),
    ] = None,
) -> None:
    """Reproduce published claims: the published figure beside ours, the set-up, and what is unknown about it.

    All of ours are simulated here and now, in some 90 s of CPU time.
    """
    import json

    from simulator.claims import Workloads, find_claims
    from simulator.claims import reproduce as run
    from simulator.claims.wording import as_json, as_markdown, as_text, put_between_markers

    chosen = find_claims(claims or ())
    if list_only:
        _print_list(chosen)
        return
    _check_outputs(json_file, into)
    results = []
    for result in run(chosen, Workloads(traces), workers=min(workers, len(chosen))):
        results.append(result)
        if not markdown:
            typer.echo(as_text(result) + "\n")
    if markdown:
        typer.echo(as_markdown(results))
    if into is not None:
        put_between_markers(into, as_markdown(results))
    if json_file is not None:
        json_file.write_text(json.dumps([as_json(result) for result in results], indent=1), encoding="utf-8")


def _check_outputs(json_file: Path | None, into: Path | None) -> None:
    """Say what cannot be written before a minute of simulation, not after it."""
    from simulator.claims.wording import between_markers
    from simulator.errors import InputError

    if into is not None:
        between_markers(into)
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(json_file, "cannot be written: its folder does not exist")


def _print_list(chosen) -> None:  # type: ignore[no-untyped-def]
    from simulator.claims.wording import published_rows

    for claim in chosen:
        typer.echo(f"{claim.id}: {claim.title}")
        for _, label, figure in published_rows([claim]):
            typer.echo(f"  {label}: {figure}")
        typer.echo(f"  source: {claim.source}")
