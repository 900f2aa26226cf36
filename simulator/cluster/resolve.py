"""From what a user states of a cluster to pools that can run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.cluster.pool import Pool
from simulator.cluster.routers import ROUTERS
from simulator.cluster.spec import ClusterSpec, PoolSpec
from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.memory import weight_bytes_per_gpu

__all__ = ["ResolvedPool", "resolve_pools", "startup_seconds"]


@dataclass(frozen=True)
class ResolvedPool:
    """A pool with its deployment looked up."""

    spec: PoolSpec
    resolved: Resolved
    pool: Pool


def resolve_pools(cluster: ClusterSpec, seed: int = 0) -> list[ResolvedPool]:
    """Every pool, looked up and checked; *seed* is for what speculation accepts. Raises `SimError`."""
    _check_roles(cluster)
    sharing: dict[str, int] = {}
    for spec in cluster.pools.values():
        if spec.gpus is not None:
            sharing[spec.gpus] = sharing.get(spec.gpus, 0) + 1
    found = []
    for name, spec in cluster.pools.items():
        found.append(_resolve(name, spec, sharing.get(spec.gpus or "", 1), seed))
    models = {p.resolved.model.name for p in found}
    for p in found:
        if p.pool.serves is None and len(models) > 1:
            p.pool.serves = frozenset({p.resolved.model.name, p.spec.deployment.model})
        if p.spec.role == "decode" and not p.resolved.system.policy_class.takes_kv:
            raise ConfigurationError(
                f"pool {p.pool.name}: system {p.resolved.system.name} cannot admit a request that brings its KV; "
                "vllm and sglang can"
            )
    return found


def startup_seconds(spec: PoolSpec, resolved: Resolved) -> float:
    """Provision + weight bytes / bandwidth + warm-up, s."""
    start, parallel = spec.startup, resolved.parallelism
    loading = 0.0
    if start.load_bandwidth is not None:
        weights = weight_bytes_per_gpu(resolved.model, resolved.precision, parallel) * parallel.num_gpus  # B
        loading = weights / start.load_bandwidth
    return start.provision + loading + start.warmup


def _resolve(name: str, spec: PoolSpec, neighbours: int, seed: int) -> ResolvedPool:
    deployment = spec.deployment
    if deployment.num_replicas != 1 or "router" in deployment.model_fields_set:
        raise ConfigurationError(f"pool {name}: replicas and router are the cluster's, not the deployment's")
    memory = spec.partition or spec.memory_share or (1 / neighbours if spec.gpus else 1.0)
    resolved = deployment.resolve() if memory == 1.0 else _with_share(name, deployment, memory)
    resolved = resolved.with_seed(seed)
    price = resolved.profile.datasheet.price
    usd = spec.usd_per_hour if spec.usd_per_hour is not None else price.usd_per_hour if price else None
    pool = Pool(
        name,
        resolved.scheduler,
        resolved.steptime,
        spec.replicas,
        role=spec.role,
        serves=None if spec.serves is None else frozenset(spec.serves),
        weight=spec.weight,
        weights=spec.weights,
        num_gpus=resolved.parallelism.num_gpus,
        gpu=resolved.profile.name,
        share=spec.partition or (1 / neighbours if spec.gpus else 1.0),
        usd_per_hour=usd,
        startup=startup_seconds(spec, resolved),
        kv_bytes_per_token=_kv_bytes_per_token(resolved),
        slowdown=1 / spec.partition if spec.partition else 1.0,
        gpus=spec.gpus,
    )
    return ResolvedPool(spec, resolved, pool)


def _with_share(name: str, deployment: Deployment, share: float) -> Resolved:
    """*deployment* on a *share* of the memory that its system would take."""
    if deployment.num_gpu_blocks is not None:
        return deployment.resolve()
    whole = deployment.resolve()
    rule = whole.budget.rule
    if rule.basis != "total":
        raise ConfigurationError(
            f"pool {name}: {whole.system.name} has no rule for a share of the memory; state num_gpu_blocks"
        )
    part = deployment.model_copy(update={"gpu_memory_utilization": rule.fraction * share}).resolve()
    return replace(part, deployment=deployment)


def _kv_bytes_per_token(resolved: Resolved) -> float:
    """Of all ranks that hold a part of a sequence, B: what tensor parallel ranks replicate is sent once each.

    The KV of a draft goes with it.
    """
    tp, plan = resolved.parallelism.tp, resolved.speculation
    own = resolved.model.kv_bytes_per_token(resolved.precision.kv, tp) / resolved.parallelism.dcp
    draft = 0.0 if plan is None else plan.memory[1]
    return (own + draft) * tp


def _check_roles(cluster: ClusterSpec) -> None:
    if cluster.router not in ROUTERS:
        raise UnknownNameError("router", cluster.router, ROUTERS)
    roles = [spec.role for spec in cluster.pools.values()]
    if ("prefill" in roles) != ("decode" in roles):
        have, need = ("prefill", "decode") if "prefill" in roles else ("decode", "prefill")
        raise ConfigurationError(f"pools: a {have} pool needs a {need} pool")
    if "prefill" in roles and cluster.transfer is None:
        raise ConfigurationError("transfer: must be stated where there are prefill and decode pools")
    if "prefill" not in roles and cluster.transfer is not None:
        raise ConfigurationError("transfer: there are no prefill and decode pools")
    if cluster.ratio is not None and (roles.count("prefill"), roles.count("decode")) != (1, 1):
        raise ConfigurationError("ratio: needs exactly one prefill and one decode pool")
    for name, spec in cluster.pools.items():
        if spec.partition is not None and spec.gpus is not None:
            raise ConfigurationError(f"pool {name}: partition and gpus are two ways to share; state one")
