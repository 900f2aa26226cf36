"""``sim report`` and ``sim export``: what was found, to hand on; a deployment, to start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export", "report"]


def report(
    directory: Annotated[
        Path, typer.Argument(help="Directory of a run, a sizing or a sweep.", show_default=False)
    ],
    to: Annotated[str, typer.Option(help="html, markdown or json.")] = "html",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: DIRECTORY.html beside it.")
    ] = None,
) -> None:
    """Make one file of DIRECTORY: a self-contained HTML page, Markdown or JSON."""
    from simulator.sizing.pages import report_of

    text, suffix = report_of(directory, to)
    target = out or directory.resolve().with_name(directory.resolve().name + suffix)
    target.write_text(text, encoding="utf-8")
    typer.echo(f"written to {target}")


def export(
    deployment: Annotated[Path, typer.Argument(help="Deployment file.", show_default=False)],
    to: Annotated[str, typer.Option(help="vllm: a command line; kubernetes: a manifest.")] = "vllm",
    model_id: Annotated[
        str | None, typer.Option(help="What vLLM loads, e.g. meta-llama/Llama-3.1-8B-Instruct.")
    ] = None,
    draft_model_id: Annotated[
        str | None, typer.Option(help="What vLLM loads to draft, with speculation.")
    ] = None,
) -> None:
    """Print how to start DEPLOYMENT on a real machine."""
    from simulator.deployment import Deployment
    from simulator.errors import UnknownNameError
    from simulator.export import command_line, kubernetes_manifest, vllm_arguments

    stated = Deployment.load(deployment)
    if to == "vllm":
        typer.echo(command_line(vllm_arguments(stated, model_id, draft_model_id)))
    elif to == "kubernetes":
        typer.echo(kubernetes_manifest(stated, model_id, draft_model_id), nl=False)
    else:
        raise UnknownNameError("target", to, ("vllm", "kubernetes"))
