"""``sim serve``: an OpenAI-compatible server with predicted step times behind it, in wall-clock time."""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from engine.server.loop import EngineLoop
    from simulator.deployment import Resolved

__all__ = ["make_loop", "serve"]


def serve(
    model: Annotated[str, typer.Option(help="Name in the zoo or path of a config.json.")] = "llama-3.1-8b",
    gpu: Annotated[str, typer.Option(help="Name or path of a hardware profile.")] = "h100",
    system: Annotated[str, typer.Option(help="Serving system, see `sim systems`.")] = "vllm",
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "--tp", help="GPUs per layer.")
    ] = 1,
    dtype: Annotated[str | None, typer.Option(help="Format of the weights.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Running sequences at most.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens per step.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence, tokens.")] = None,
    num_gpu_blocks: Annotated[int | None, typer.Option(help="KV blocks.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Directory with a tokenizer.json.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Also ENGINE_API_KEY.")] = None,
) -> None:
    """Serve OpenAI's API as a deployment that is not there would: same answers' timing, random letters."""
    from simulator.deployment import Deployment
    from simulator.errors import ConfigurationError

    limits = {
        "dtype": dtype,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "num_gpu_blocks": num_gpu_blocks,
    }
    stated = {name: value for name, value in limits.items() if value is not None}
    resolved = Deployment.of(
        model=model, gpu=gpu, system=system, tensor_parallel_size=tensor_parallel_size, **stated
    ).resolve()
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
    numbered = "track_ids" in known and not getattr(policy, "forks", False)
    wanted = {"explicit": True, "track_ids": numbered}  # the executor needs to know who decodes, and where
    more: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    words = load_tokenizer(tokenizer, vocab)
    executor = SimulatedExecutor(
        PredictedDevice(resolved.steptime.seconds, vocab, resolved.budget.block_size),
        resolved.scheduler(**more),
        numbered=numbered,
        tokenizer=words,
        num_host_blocks=int(resolved.limits.get("num_cpu_blocks", 0)),
    )
    length = resolved.limits.get("max_model_len", resolved.model.max_position_embeddings)
    return EngineLoop(executor, resolved.model.name, int(length), words)
