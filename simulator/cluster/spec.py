"""A cluster as a user describes it: pools of replicas, what is in front of them, what happens to them.

    pools:
      large: {deployment: {model: llama-3.1-8b, gpu: h100}, replicas: 2}
      small: {deployment: {model: llama-3.1-8b, gpu: l40s, system: sglang}, replicas: 4}
    router: least-outstanding

Pools may differ in everything. A request goes to the pools that serve its model: those whose ``serves`` names it;
without ``serves`` those whose deployment's model it names; and if all pools hold the same model, to all of them.

Several models on the same GPUs, by two rules. ``partition: 0.5`` is half of every GPU for good (MIG): steps last
twice as long and half of the memory that the system may use is there. Pools with the same ``gpus: NAME`` take turns on
them (replica k of each on the same GPUs): a step that begins while n of them have work lasts n times as long, and each
has its ``memory_share``, an equal part by default.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from simulator.cluster.admission import AdmissionSpec
from simulator.cluster.autoscaler import AutoscaleSpec, RatioSpec
from simulator.cluster.failures import FailureSpec
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, InputError
from simulator.mapping_file import read_mapping
from simulator.results.goodput import OBJECTIVES

__all__ = ["ClusterSpec", "PoolSpec", "StartupSpec", "TransferSpec"]


class Part(BaseModel):
    """Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartupSpec(Part):
    """What it takes until a new replica serves: a machine, its weights, a warm-up."""

    provision: float = Field(default=0.0, ge=0)
    """s until the machine is there."""
    load_bandwidth: float | None = Field(default=None, gt=0)
    """B/s at which a replica's weights are read from disk or network, all its GPUs together; None: at once."""
    warmup: float = Field(default=0.0, ge=0)
    """s for graphs and first batches."""


class TransferSpec(Part):
    """The link from a prefill replica to the decode replicas."""

    bandwidth: float = Field(gt=0)
    """B/s."""
    latency: float = Field(default=0.0, ge=0)
    """s."""
    sharing: Literal["fair", "fifo"] = "fair"
    shared: bool = False
    """Whether all prefill replicas send over one link; else each has its own."""


class PoolSpec(Part):
    """*replicas* times *deployment*."""

    deployment: Deployment
    replicas: int = Field(default=1, ge=1, le=10_000)
    role: Literal["serve", "prefill", "decode"] = "serve"
    serves: tuple[str, ...] | None = None
    weight: float = Field(default=1.0, ge=0)
    weights: dict[str, float] = {}
    """Weight by SLO class, where it differs."""
    usd_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of one GPU, instead of the profile's."""
    partition: float | None = Field(default=None, gt=0, le=1)
    gpus: str | None = None
    memory_share: float | None = Field(default=None, gt=0, le=1)
    startup: StartupSpec = StartupSpec()
    autoscale: AutoscaleSpec | None = None


class ClusterSpec(Part):
    """Pools by name, and what they share."""

    pools: dict[str, PoolSpec] = Field(min_length=1)
    router: str = "round-robin"
    staleness: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """s between two looks of the router at the replicas; 0: it sees them as they are."""
    imbalance: int = Field(default=32, ge=0)
    """Requests by which loads may differ before a prefix-aware router goes by load."""
    admission: AdmissionSpec | None = None
    transfer: TransferSpec | None = None
    ratio: RatioSpec | None = None
    """Whether replicas move between the prefill and the decode pool."""
    failures: FailureSpec | None = None
    slo: dict[str, dict[str, float]] = {}
    """Objectives in ms by SLO class."""

    @field_validator("slo")
    @classmethod
    def _known_objectives(cls, slo: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, objectives in slo.items():
            for objective, value in objectives.items():
                if objective not in OBJECTIVES:
                    raise ValueError(
                        f"{name}: unknown objective {objective!r}: must be one of {', '.join(OBJECTIVES)}"
                    )
                if not 0 < value < math.inf:
                    raise ValueError(f"{name}.{objective} {value}: must be above 0 and finite (ms)")
        return slo

    @classmethod
    def of(cls, **values: Any) -> ClusterSpec:
        """A cluster from keyword arguments. Raises `ConfigurationError` with one line for what is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigurationError(_first_problem(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> ClusterSpec:
        """Read a YAML file, or a run's ``config.yaml``. Raises `InputError`: file, field, value and what is allowed."""
        values = read_mapping(path, ": pools, router, …", "cluster")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(path, _first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown option {place!r}"
    if problem["type"] == "missing":
        return f"{place}: must be stated"
    return f"{place}: {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
