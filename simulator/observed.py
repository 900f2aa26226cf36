"""What a profile knows of a serving system in production, and for which deployments it holds.

`sim calibrate fit-host` writes it (`hwprofiles.ServingCosts`): host costs hold for every deployment of the system, with
a warning where another model or number of GPUs was observed; the KV cache only for the very deployment.
"""

from __future__ import annotations

from dataclasses import replace

from hwprofiles import HardwareProfile, ServingCosts
from simulator.memory import MemoryBudget
from simulator.models import ModelSpec, Precision
from simulator.steptime import Parallelism
from simulator.steptime.traits import nearest_traits

__all__ = ["find_observed", "observed_budget", "observed_elsewhere"]


def find_observed(
    profile: HardwareProfile, traits: str, model: ModelSpec, parallelism: Parallelism
) -> ServingCosts | None:
    """What was observed of the system of entry *traits*, nearest to this deployment."""
    if not profile.serving:
        return None
    return profile.serving_costs(nearest_traits(traits), model.name, parallelism.num_gpus)


def observed_budget(
    budget: MemoryBudget,
    seen: ServingCosts | None,
    model: ModelSpec,
    parallelism: Parallelism,
    precision: Precision,
) -> MemoryBudget:
    """The KV cache that this very deployment was seen to have; *budget* for any other."""
    if seen is None or seen.kv_tokens is None:
        return budget
    deployed = (model.name, parallelism.num_gpus, precision.weights, precision.kv)
    if (seen.model, seen.num_gpus, seen.dtype, seen.kv_dtype) != deployed:
        return budget
    blocks = max(seen.kv_tokens // budget.block_size, 1)
    return replace(budget, num_gpu_blocks=blocks, observed=f"{seen.kv_source}, {seen.source.date}")


def observed_elsewhere(seen: ServingCosts | None, model: ModelSpec, parallelism: Parallelism) -> list[str]:
    """A warning where the host costs were observed on another deployment of the system."""
    if seen is None or (seen.model, seen.num_gpus) == (model.name, parallelism.num_gpus):
        return []
    here = f"{model.name} on {parallelism.num_gpus}"
    return [f"host costs were observed with {seen.model} on {seen.num_gpus} GPUs, not {here}"]
