"""The plan of the peak under an autoscaler that only sees its signal, over the whole trace.

Kubernetes' rule with its defaults (`simulator.cluster`), behind a router to the least loaded replica, with at most
twice the replicas that fixed provisioning needs. A new replica serves after a minute for its machine, its weights at
2 GB/s and half a minute of warm-up: assumptions, stated with the result. What such a controller costs is only half of
the answer; the other half is whether the SLO still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.cluster import ClusterSpec
from simulator.simulation import simulate
from simulator.sizing.plan import Plan
from simulator.sizing.slo import Slo
from simulator.sizing.split import ROUTER
from simulator.workload import Trace

__all__ = ["SIGNALS", "autoscaled"]

STARTUP = {"provision": 60.0, "load_bandwidth": 2e9, "warmup": 30.0}
SIGNALS: Mapping[str, Mapping[str, float]] = {"queue": {"target": 1.0}, "kv": {"target": 0.5}}
"""Controllers that are tried: waiting requests per replica, and the share of the KV cache in use."""
LARGEST = 2
"""Replicas at most, in terms of what fixed provisioning needs."""


def autoscaled(trace: Trace, plan: Plan, slo: Slo, fixed: int, signal: str) -> dict[str, Any]:
    """What scaling *plan* by *signal* costs on *trace*, and how the SLO fares.

    *fixed*: the replicas of fixed provisioning, with which it starts.
    """
    result = simulate(trace, _cluster(plan, fixed, signal))
    hours = result.end_time / 3600  # s -> h
    attained = [objective.attained(result) for objective in slo.objectives]
    return {
        "name": f"autoscaler on {signal}, target {SIGNALS[signal]['target']:g}",
        "peak_gpus": int(np.max(result.gpus_over_time[1])),
        "mean_gpus": result.gpu_hours / hours,
        "gpu_hours": result.gpu_hours,
        "usd": result.usd,
        "met": all(one.met for one in attained),
        "objectives": [one.as_dict() for one in attained],
        "startup": STARTUP,
    }


def _cluster(plan: Plan, fixed: int, signal: str) -> ClusterSpec:
    """*fixed* replicas of *plan* to begin with; prefill and decode pools grow and shrink by themselves."""
    split, deployment = plan.candidate.choice.split, plan.candidate.deployment
    one = deployment.model_dump(exclude_unset=True, exclude={"num_replicas", "router"})
    if split is None:
        whole: dict[str, Any] = {"pools": {"pool": {"deployment": one, "replicas": fixed}}, "router": ROUTER}
    else:
        whole = split.cluster(deployment, fixed).model_dump(exclude_unset=True)
    for pool in whole["pools"].values():
        pool["usd_per_hour"], pool["startup"] = plan.candidate.usd_per_gpu_hour, STARTUP
        most = LARGEST * pool["replicas"]
        pool["autoscale"] = {"signal": signal, **SIGNALS[signal], "max_replicas": most}
    return ClusterSpec.of(**whole)
