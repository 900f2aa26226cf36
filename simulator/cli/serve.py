"""``sim serve``: an OpenAI-compatible server with predicted step times behind it, in wall-clock time."""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.deployment_options import read_deployment, with_deployment

if TYPE_CHECKING:
    from engine.server.loop import EngineLoop
    from simulator.deployment import Resolved

__all__ = ["make_loop", "serve"]

SERVER = "Server"


@with_deployment(simulated=False)
def serve(
    tokenizer: Annotated[
        Path | None, typer.Option(help="Directory with a tokenizer.json.", rich_help_panel=SERVER)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to bind.", min=0, max=65_535, rich_help_panel=SERVER)
    ] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Also ENGINE_API_KEY.", rich_help_panel=SERVER)] = None,
    stated: Any = None,
) -> None:
    """Serve OpenAI's API as a deployment that is not there would: same answers' timing, random letters."""
    from simulator.errors import ConfigurationError

    resolved = read_deployment(stated).resolve()
    try:
        from engine.server import Limits
        from engine.server.serve import serve as run

        loop = make_loop(resolved, tokenizer)
    except ImportError as error:
        raise ConfigurationError(f"serving needs torch, fastapi and uvicorn: {error}") from error
    for line in (f"{resolved.title} (simulated)", *resolved.provenance, *resolved.warnings):
        typer.echo(line)
    run(loop, Limits(api_key=api_key or os.environ.get("ENGINE_API_KEY")), host, port)


def make_loop(resolved: Resolved, tokenizer: Path | None = None) -> EngineLoop:
    """What stands behind the server: the deployment's policy on its predicted step times."""
    from engine.server.loop import EngineLoop
    from engine.simulated import PredictedDevice, SimulatedExecutor
    from engine.tokenizer import load_tokenizer

    policy, vocab = resolved.system.policy_class, resolved.model.vocab_size
    known = signature(policy).parameters
    speculating, steps = resolved.speculation is not None, resolved.steptime
    numbered = "track_ids" in known and not getattr(policy, "forks", False) and not speculating
    wanted = {"explicit": True, "track_ids": numbered}  # the executor needs to know who decodes, and where
    more: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    words = load_tokenizer(tokenizer, vocab)

    def seconds(num_decodes: int, context: int, prefills: list[tuple[int, int]]) -> float:
        """A sequence attends to the tokens that it checks, too."""
        return steps.seconds(num_decodes, context + int(steps.width - 1) * num_decodes, prefills)

    executor = SimulatedExecutor(
        PredictedDevice(seconds, vocab, resolved.budget.block_size),
        resolved.scheduler(**more),
        numbered=numbered,
        tokenizer=words,
        num_host_blocks=int(resolved.limits.get("num_cpu_blocks", 0)),
    )
    length = resolved.limits.get("max_model_len", resolved.model.max_position_embeddings)
    return EngineLoop(executor, resolved.model.name, int(length), words)
