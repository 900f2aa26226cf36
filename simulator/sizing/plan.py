"""A plan: a deployment with a number of replicas, what it costs, and how it stands against the SLO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.sizing.candidates import Candidate, ToBeat
from simulator.sizing.capacity import Capacity, Probe, probe
from simulator.sizing.slo import Attained, Slo, finite
from simulator.workload import Trace

__all__ = ["Confirmation", "Plan", "pareto_front"]

HOURS_PER_MONTH = 730
_T = TypeVar("_T")


@dataclass(frozen=True)
class Confirmation:
    """Independent simulations of fresh traffic, longer than the trace: each objective's mean and upper bound."""

    runs: tuple[Probe, ...]
    requests: int
    """Of each run."""
    level: float

    def upper(self, index: int) -> float:
        """Upper confidence bound at `level` of the mean ratio value/limit of objective *index* (Student's t)."""
        from scipy.special import stdtrit

        ratios = np.array([run.attained[index].ratio for run in self.runs])
        if len(ratios) < 2 or not np.isfinite(ratios).all():
            return math.inf
        return float(
            ratios.mean() + stdtrit(len(ratios) - 1, self.level) * ratios.std(ddof=1) / math.sqrt(len(ratios))
        )

    @property
    def met(self) -> bool:
        """Whether every objective holds with this confidence, without overload."""
        return all(one.met for one in self.attained) and not any(run.overloaded for run in self.runs)

    @property
    def attained(self) -> tuple[Attained, ...]:
        """Every objective at its upper confidence bound."""
        ratios = [self.upper(i) for i in range(len(self.runs[0].attained))]
        means = [float(np.mean([run.attained[i].share for run in self.runs])) for i in range(len(ratios))]
        objectives = [one.objective for one in self.runs[0].attained]
        return tuple(
            Attained(one, one.at(ratio), ratio, mean) for one, ratio, mean in zip(objectives, ratios, means)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        objectives = []
        for i, one in enumerate(self.runs[0].attained):
            values, shares = (
                [getattr(run.attained[i], name) for run in self.runs] for name in ("value", "share")
            )
            objectives.append(
                {
                    "objective": str(one.objective),
                    "mean": finite(float(np.mean(values))),
                    "runs": [finite(value) for value in values],
                    "upper_ratio": finite(self.upper(i)),
                    "share_within": finite(float(np.mean(shares))),
                    "met": self.upper(i) <= 1,
                }
            )
        return {
            "level": self.level,
            "requests_per_run": self.requests,
            "met": self.met,
            "objectives": objectives,
        }


@dataclass(frozen=True)
class Rejected:
    """A number of replicas that a plan was tried with, and why it does not do."""

    replicas: int
    usd_per_hour: float
    why: str


@dataclass(frozen=True)
class Plan:
    """*candidate* with *replicas* for a total of *request_rate* requests/s."""

    candidate: Candidate
    capacity: Capacity
    request_rate: float
    replicas: int
    run: Probe | None = None
    """The whole trace on all replicas."""
    confirmation: Confirmation | None = None
    rejected: tuple[Rejected, ...] = ()
    """Fewer replicas that were tried, and did not do."""

    @property
    def system(self) -> Deployment | ClusterSpec:
        """What would run: a deployment with its replicas, or a cluster of prefill and decode pools."""
        return self.candidate.choice.system(self.replicas)

    @property
    def deployment(self) -> Deployment:
        """The deployment with the number of replicas (or units)."""
        return self.candidate.deployment.model_copy(update={"num_replicas": self.replicas})

    def probe(self, trace: Trace, slo: Slo) -> Probe:
        """*trace* as it is on all replicas."""
        return probe(trace, self.system, slo, self.replicas)

    @property
    def num_gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.candidate.num_gpus

    @property
    def usd_per_hour(self) -> float:
        """Of all replicas."""
        return self.replicas * self.candidate.usd_per_replica

    def with_replicas(self, replicas: int) -> Plan:
        """The same with another number, not simulated yet."""
        return replace(self, replicas=replicas, run=None, confirmation=None)

    def ruled_out(self, why: str) -> Plan:
        """The same with a note that this number of replicas does not do."""
        return replace(self, rejected=(*self.rejected, Rejected(self.replicas, self.usd_per_hour, why)))

    @property
    def most_replicas(self) -> int:
        """Where it stops: twice what the capacity of one asks for, and two."""
        return math.ceil(2 * self.request_rate / self.capacity.request_rate + 2)

    @property
    def costs(self) -> ToBeat:
        """$ per hour, and with the fraction of a replica that is needed of the last."""
        fraction = self.candidate.costs(self.capacity.request_rate, self.request_rate).fraction
        return ToBeat(self.usd_per_hour, fraction)

    @property
    def order(self) -> tuple[float, float, int, str]:
        """Cheapest first; of equal cost the one with more to spare, then the fewer GPUs, then by name."""
        return (*self.costs, self.num_gpus, self.candidate.name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        split = self.candidate.choice.split
        apart = {} if split is None else {"split": vars(split), "cluster": _plain(self.system)}
        return {
            "name": self.candidate.name,
            "deployment": self.deployment.model_dump(exclude_unset=True) | {"num_replicas": self.replicas},
            **apart,
            "num_gpus": self.num_gpus,
            "usd_per_hour": self.usd_per_hour,
            "usd_per_month": HOURS_PER_MONTH * self.usd_per_hour,
            "usd_per_gpu_hour": self.candidate.usd_per_gpu_hour,
            "capacity": self.capacity.as_dict(),
            "run": None if self.run is None else self.run.as_dict(),
            "confirmation": None if self.confirmation is None else self.confirmation.as_dict(),
            "rejected": [vars(one) for one in self.rejected],
        }


def _plain(system: Deployment | ClusterSpec) -> dict[str, Any]:
    """What a file for ``sim run --cluster`` holds."""
    found: dict[str, Any] = system.model_dump(mode="json", exclude_unset=True)
    return found


def pareto_front(points: Sequence[_T], low: Callable[[_T], float], high: Callable[[_T], float]) -> list[_T]:
    """The points that no other beats in both: *low* is to be small, *high* to be large. Sorted by *low*."""
    front: list[_T] = []
    for point in sorted(points, key=lambda one: (low(one), -high(one))):
        if not front or high(point) > high(front[-1]):
            front.append(point)
    return front
