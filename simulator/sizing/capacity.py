"""The capacity of a replica: the highest request rate at which the SLO holds, found by bisection.

Every probe replays the same requests, stretched, so that nothing but the rate differs (common random numbers). The
part of the trace is what one replica of the expected number would get behind a round-robin router. Where the queue
starts to grow without end (`detect_overload`) is the saturation point; the SLO usually gives way before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulator.analytic import SteadyState, Traffic
from simulator.cluster import ClusterResult, ClusterSpec
from simulator.deployment import Deployment, Resolved
from simulator.simulation import Result, simulate
from simulator.sizing.slo import Attained, Slo, finite
from simulator.sizing.split import Split
from simulator.sizing.traffic import part_of
from simulator.workload import Trace

__all__ = ["Capacity", "Probe", "find_capacity", "probe", "unloaded"]

TOLERANCE = 0.02
"""Width of the final bracket, relative to the rate."""
PROBE_REQUESTS = 2_000
EXPAND = 1.2
"""Steps of the search for a bracket; the capacity mostly lies between half the stability limit and three quarters."""
LEAST_LOAD = 0.02
"""Share of the stability limit at which a replica counts as unloaded."""


@dataclass(frozen=True)
class Probe:
    """One simulated rate. Rates are per replica."""

    request_rate: float
    attained: tuple[Attained, ...]
    overloaded: bool
    output_tokens_per_s: float
    """Of one replica."""
    tpot_s: float
    """Mean."""
    kv_usage: float
    mean_batch: float
    preemptions: int

    @property
    def met(self) -> bool:
        """Whether every objective holds and the queue does not grow without end."""
        return not self.overloaded and all(one.met for one in self.attained)

    @property
    def worst(self) -> Attained:
        """The objective that is missed by most, or nearest to its limit."""
        return max(self.attained, key=lambda one: one.ratio)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "request_rate": self.request_rate,
            "met": self.met,
            "overloaded": self.overloaded,
            "output_tokens_per_s": self.output_tokens_per_s,
            "tpot_s": finite(self.tpot_s),
            "kv_usage": self.kv_usage,
            "mean_batch": self.mean_batch,
            "preemptions": self.preemptions,
            "objectives": [one.as_dict() for one in self.attained],
        }


@dataclass(frozen=True)
class Capacity:
    """What one replica of *deployment* can take under the SLO."""

    deployment: Deployment
    request_rate: float
    """The highest probed rate that holds, 1/s; 0 where none does."""
    bound: float
    """The analytic stability limit, 1/s."""
    probes: tuple[Probe, ...] = field(repr=False)

    @property
    def binding(self) -> Probe | None:
        """The lowest probed rate that does not hold."""
        missed = [one for one in self.probes if not one.met]
        return min(missed, key=lambda one: one.request_rate) if missed else None

    @property
    def saturation(self) -> float | None:
        """The lowest probed rate at which the queue grew without end; None where none did."""
        rates = [one.request_rate for one in self.probes if one.overloaded]
        return min(rates) if rates else None

    @property
    def unloaded(self) -> Probe:
        """The lowest probed rate."""
        return min(self.probes, key=lambda one: one.request_rate)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "request_rate": self.request_rate,
            "bound": self.bound,
            "saturation": self.saturation,
            "limited_by": None if self.binding is None else str(self.binding.worst.objective),
            "probes": [one.as_dict() for one in sorted(self.probes, key=lambda one: one.request_rate)],
        }


def probe(trace: Trace, system: Deployment | Resolved | ClusterSpec, slo: Slo, replicas: int = 1) -> Probe:
    """Simulate *trace* as it is on *system*: a deployment with its replicas, or a cluster that stands for *replicas*
    (units of prefill and decode pools)."""
    if isinstance(system, ClusterSpec):
        return summary_of(simulate(trace, system), slo, replicas)
    result = simulate(trace, system)
    return summary_of(result, slo, result.resolved.deployment.num_replicas)


def summary_of(result: Result | ClusterResult, slo: Slo, replicas: int) -> Probe:
    """What sizing keeps of a simulation of *replicas*."""
    values = result.summary.values
    number = {name: float(value) for name, value in values.items() if value is not None}
    overload = result.summary.overload
    return Probe(
        request_rate=result.trace.request_rate / replicas,
        attained=tuple(slo.attained(result)),
        overloaded=overload is not None and overload.overloaded,
        output_tokens_per_s=number.get("output_throughput", 0.0) / replicas,
        tpot_s=number.get("mean_tpot_ms", math.nan) / 1000,  # ms -> s
        kv_usage=number.get("kv_cache_usage_mean", 0.0),
        mean_batch=number.get("mean_batch_size", 0.0),
        preemptions=int(number.get("preemptions", 0)),
    )


def find_capacity(
    trace: Trace,
    deployment: Deployment,
    slo: Slo,
    *,
    replicas: int = 1,
    requests: int = PROBE_REQUESTS,
    tolerance: float = TOLERANCE,
    split: Split | None = None,
) -> Capacity:
    """The capacity of one of *replicas* round-robin replicas of *deployment* on *trace*, by bisection.

    *requests* are simulated per probe, or a replica's whole part where that is more. With *split*, of one of so many
    units of prefill and decode replicas. Raises `SimError` where the deployment is impossible.
    """
    bound, run_at = _bench(trace, deployment, slo, replicas, requests, split)
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(run_at(rate))
        return probes[-1].met

    return Capacity(deployment, _bisect(holds, LEAST_LOAD * bound, bound, tolerance), bound, tuple(probes))


def unloaded(trace: Trace, deployment: Deployment, slo: Slo, requests: int, split: Split | None) -> Probe:
    """One replica (or unit) of *deployment* with next to nothing to do: no number of replicas is better."""
    bound, run_at = _bench(trace, deployment, slo, 1, requests, split)
    return run_at(LEAST_LOAD * bound)


def _bench(
    trace: Trace, deployment: Deployment, slo: Slo, replicas: int, requests: int, split: Split | None
) -> tuple[float, Callable[[float], Probe]]:
    """(the analytic stability limit of one replica, what runs the probe at a rate per replica)."""
    part, some = part_of(trace, replicas, requests)
    resolved = deployment.model_copy(update={"num_replicas": some}).resolve()
    state = SteadyState(resolved, Traffic.of_trace(trace, 1.0))
    bound = state.stability_limit if split is None else split.bound(state, math.inf)
    system = resolved if split is None else split.cluster(deployment, some)
    return bound, lambda rate: probe(part.with_request_rate(rate * some), system, slo, some)


def _bisect(holds: Callable[[float], bool], least: float, bound: float, tolerance: float) -> float:
    """The highest rate known to hold when the bracket is *tolerance* wide; 0 where not even *least* holds."""
    low = high = bound / 2
    if holds(low):
        while holds(high := EXPAND * low):
            low = high
    else:
        while not holds(low := max(low / EXPAND**2, least)):
            if low == least:
                return 0.0
            high = low
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
