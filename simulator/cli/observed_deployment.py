"""What `sim calibrate fit-host` and `sim calibrate predict` ask about the system that was observed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.deployment import Deployment

__all__ = [
    "DeploymentFile",
    "Dtype",
    "Gpu",
    "KvCacheDtype",
    "MaxModelLen",
    "MaxNumBatchedTokens",
    "MaxNumSeqs",
    "Model",
    "NumGpuBlocks",
    "PrefixCaching",
    "Recording",
    "System",
    "TensorParallelSize",
    "stated_deployment",
]

Recording = Annotated[
    Path, typer.Argument(help="An observation, or a result file of `vllm bench serve` or guidellm.")
]
Gpu = Annotated[str | None, typer.Option(help="Name or path of the profile whose laws hold.")]
Model = Annotated[str | None, typer.Option(help="Name in the zoo or path of a config.json.")]
System = Annotated[str | None, typer.Option(help="Serving system, see `sim systems`.")]
DeploymentFile = Annotated[
    Path | None, typer.Option("--deployment", "-c", help="YAML file; options override it.")
]
TensorParallelSize = Annotated[
    int | None, typer.Option("--tensor-parallel-size", "--tp", help="GPUs per layer.")
]
Dtype = Annotated[str | None, typer.Option(help="Format of the weights.")]
KvCacheDtype = Annotated[str | None, typer.Option(help="Format of keys and values.")]
MaxNumSeqs = Annotated[int | None, typer.Option(help="Running sequences at most.")]
MaxNumBatchedTokens = Annotated[int | None, typer.Option(help="Tokens per step.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest sequence, tokens.")]
NumGpuBlocks = Annotated[int | None, typer.Option(help="KV blocks, instead of what was seen.")]
PrefixCaching = Annotated[
    bool | None, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Share KV.")
]


def stated_deployment(options: dict[str, Any]) -> Deployment:
    """What *options* and their file state; GPU, model and system must be among it.

    The front end is not: it is what an observation tells.
    """
    from simulator.deployment import Deployment
    from simulator.errors import ConfigurationError

    path = options["deployment"]
    stated = Deployment.load(path).model_dump(exclude_unset=True) if path else {}
    names = set(options) & set(Deployment.model_fields)
    stated |= {name: options[name] for name in names if options[name] is not None}
    for name in ("gpu", "model", "system"):
        if name not in stated:
            raise ConfigurationError(f"--{name}: say what was observed")
    return Deployment.of(**{**stated, "request_overhead_ms": None})
