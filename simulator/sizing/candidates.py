"""What may be deployed: GPU × parallelism × system × limits, and what the analytic bound leaves of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hwprofiles import load_profile
from simulator.analytic import SteadyState, Traffic
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, SimError
from simulator.scheduling.system import find_system
from simulator.sizing.prices import Prices

__all__ = ["Candidate", "SearchSpace", "Skipped"]

DEFAULT_GPUS = ("h100", "h200", "a100", "l40s", "mi300x")
SLACK = 1.1
"""The analytic bound is raised by this factor before it prunes: it is that of a steady stream of mean requests."""


@dataclass(frozen=True)
class SearchSpace:
    """The choices; their product is searched. None among them: what the system would choose."""

    base: Deployment
    gpus: Sequence[str] = DEFAULT_GPUS
    systems: Sequence[str] = ("vllm",)
    tensor_parallel_sizes: Sequence[int] = (1, 2, 4, 8)
    dtypes: Sequence[str | None] = (None, "fp8")
    max_num_seqs: Sequence[int | None] = (None, 128)
    max_num_batched_tokens: Sequence[int | None] = (None, 2048)

    def deployments(self) -> Iterator[Deployment]:
        """Every choice once, in a fixed order. Raises `UnknownNameError` for a GPU or system that does not exist."""
        for name in self.systems:
            find_system(name)
        gpus = [load_profile(gpu).name for gpu in self.gpus]
        axes = (
            self.systems,
            self.tensor_parallel_sizes,
            self.dtypes,
            self.max_num_seqs,
            self.max_num_batched_tokens,
        )
        if not gpus or not all(axes):
            raise ConfigurationError("the search space is empty: every choice needs at least one value")
        for gpu, system, tp, dtype, seqs, tokens in itertools.product(dict.fromkeys(gpus), *axes):
            stated: dict[str, Any] = {
                "gpu": gpu,
                "system": system,
                "tensor_parallel_size": tp,
                "num_replicas": 1,
            }
            limits = {"dtype": dtype, "max_num_seqs": seqs, "max_num_batched_tokens": tokens}
            stated |= {key: value for key, value in limits.items() if value is not None}
            yield Deployment.of(**{**self.base.model_dump(exclude_unset=True), **stated})


@dataclass(frozen=True)
class Candidate:
    """One replica's deployment with its price and its analytic bound, requests/s."""

    deployment: Deployment
    usd_per_gpu_hour: float
    num_gpus: int
    bound: float

    @property
    def usd_per_replica(self) -> float:
        """$ per hour."""
        return self.usd_per_gpu_hour * self.num_gpus

    def least_cost(self, request_rate: float) -> float:
        """$ per hour below which *request_rate* cannot be served, by the bound."""
        return math.ceil(request_rate / (SLACK * self.bound)) * self.usd_per_replica

    @property
    def name(self) -> str:
        """The choice in a few words."""
        d = self.deployment
        parts = [f"{self.num_gpus} x {d.gpu}", d.system, d.dtype or "published weights"]
        parts += [f"max_num_seqs {d.max_num_seqs}"] if d.max_num_seqs else []
        parts += [f"max_num_batched_tokens {d.max_num_batched_tokens}"] if d.max_num_batched_tokens else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Skipped:
    """A choice that was not followed to the end, and why. *stage*: impossible, price, bound or simulation."""

    name: str
    stage: str
    why: str


def screen(deployment: Deployment, traffic: Traffic, prices: Prices, tpot_s: float) -> Candidate | Skipped:
    """The candidate, or why it is none: it does not fit, has no price, or its shortest round is too long."""
    gpus = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    name = Candidate(deployment, 0.0, gpus, 0.0).name
    try:
        resolved = deployment.resolve()
        state = SteadyState(resolved, traffic)
        bound, price = state.capacity_bound(tpot_s), prices.of(resolved.profile.name).usd_per_hour
    except SimError as error:
        return Skipped(
            name, "price" if "no price" in str(error) else "impossible", " ".join(str(error).split())
        )
    if bound <= 0:
        shortest = 1000 * state.shortest_step()
        return Skipped(
            name,
            "bound",
            f"a decode step of one request takes {shortest:.1f} ms, TPOT must be {1000 * tpot_s:g} ms",
        )
    return Candidate(deployment, price, resolved.parallelism.num_gpus, bound)
