"""What `sim calibrate fit-host` and `sim calibrate predict` ask about the system that was observed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.deployment_options import read_deployment

if TYPE_CHECKING:
    from simulator.deployment import Deployment

__all__ = ["Recording", "observed_deployment"]

Recording = Annotated[
    Path, typer.Argument(help="An observation, or a result file of `vllm bench serve` or guidellm.")
]


def observed_deployment(stated: Mapping[str, Any]) -> Deployment:
    """What options and their file state; GPU, model and system must be among it.

    The front end is not: it is what an observation tells.
    """
    from simulator.errors import ConfigurationError

    deployment = read_deployment(stated)
    for name in ("gpu", "model", "system"):
        if name not in deployment.model_fields_set:
            raise ConfigurationError(f"--{name}: say what was observed")
    return deployment.model_copy(update={"request_overhead_ms": None})
