"""The least GPUs for every interval of a trace: what a perfect autoscaler would pay, against provisioning for the peak.

The busiest interval is sized first; the best plan of each GPU type competes in every interval. There the number of
replicas starts from the capacity of a replica and is corrected by simulating the interval's own requests, until one
replica less would miss the SLO. Start-up takes no time and a replica moves without loss: a bound, not a controller.
Every interval starts empty; what the interval before left unfinished is not carried over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.errors import ConfigurationError
from simulator.sizing.autoscaled import SIGNALS, autoscaled
from simulator.sizing.candidates import SearchSpace
from simulator.sizing.plan import Plan
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.prices import Prices
from simulator.sizing.search import Search
from simulator.sizing.slo import Slo
from simulator.sizing.traffic import check_open
from simulator.workload import Trace

__all__ = ["Interval", "OverTime", "Provisioning", "size_over_time"]

COMPETING = 3
"""Plans, of different GPU types, that compete in every interval."""
S_PER_H = 3600.0


@dataclass(frozen=True)
class Interval:
    """One interval with the cheapest plan for it; *replicas* 0 where no request comes."""

    start_s: float
    length_s: float
    requests: int
    plan: Plan
    replicas: int
    same: int
    """Replicas that the plan of the peak would need."""

    @property
    def num_gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.plan.candidate.num_gpus

    @property
    def usd_per_hour(self) -> float:
        """Of all replicas."""
        return self.replicas * self.plan.candidate.usd_per_replica

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "start_s": self.start_s,
            "length_s": self.length_s,
            "requests": self.requests,
            "request_rate": self.requests / self.length_s,
            "name": self.plan.candidate.name,
            "replicas": self.replicas,
            "num_gpus": self.num_gpus,
            "usd_per_hour": self.usd_per_hour,
            "replicas_of_peak_plan": self.same,
        }


@dataclass(frozen=True)
class Provisioning:
    """GPUs over the whole trace."""

    peak_gpus: int
    mean_gpus: float
    gpu_hours: float
    usd: float


@dataclass(frozen=True)
class OverTime:
    """The answer; *peak* is the plan of the busiest interval."""

    trace: Trace
    slo: Slo
    peak: Plan
    intervals: tuple[Interval, ...]
    autoscalers: tuple[dict[str, Any], ...] = ()
    """The plan of the peak under modelled autoscalers, see `autoscaled`."""

    @property
    def hours(self) -> float:
        """Of all intervals."""
        return sum(one.length_s for one in self.intervals) / S_PER_H

    @property
    def perfect(self) -> Provisioning:
        """As many replicas as each interval needs, of what is cheapest in it."""
        return self._of(
            [one.num_gpus for one in self.intervals], [one.usd_per_hour for one in self.intervals]
        )

    @property
    def fixed_replicas(self) -> int:
        """Of the peak's plan, what the most demanding interval needs."""
        return max(one.same for one in self.intervals)

    @property
    def fixed(self) -> Provisioning:
        """These replicas all the time."""
        replicas = self.fixed_replicas
        gpus, usd = replicas * self.peak.candidate.num_gpus, replicas * self.peak.candidate.usd_per_replica
        return self._of([gpus] * len(self.intervals), [usd] * len(self.intervals))

    def _of(self, gpus: Sequence[int], usd: Sequence[float]) -> Provisioning:
        hours = [one.length_s / S_PER_H for one in self.intervals]
        gpu_hours = float(np.dot(gpus, hours))
        return Provisioning(max(gpus), gpu_hours / self.hours, gpu_hours, float(np.dot(usd, hours)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with a headline."""
        perfect, fixed = self.perfect, self.fixed
        return {
            "headline": (
                f"Fixed: {fixed.peak_gpus} GPUs, ${fixed.usd:,.2f} for {self.hours:.1f} h; a perfect autoscaler: "
                f"{perfect.mean_gpus:.1f} GPUs on average, ${perfect.usd:,.2f} ({1 - perfect.usd / fixed.usd:.0%} less)"
            ),
            "subtitle": f"{len(self.trace):,} requests; {self.slo}; fixed: {self.peak.candidate.name}",
            "over_time": {
                "perfect": vars(perfect),
                "fixed": vars(fixed),
                "autoscalers": list(self.autoscalers),
                "intervals": [one.as_dict() for one in self.intervals],
            },
            "peak": self.peak.as_dict(),
            "provenance": [
                *self.peak.candidate.deployment.resolve().provenance,
                "every interval is simulated by itself, from empty; start-up takes no time: a bound for any autoscaler",
            ],
        }


def size_over_time(
    trace: Trace,
    slo: Slo,
    space: SearchSpace,
    prices: Prices | None = None,
    *,
    interval: float = 900.0,
    executor: Executor | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> OverTime:
    """Size every *interval* (s) of *trace*. Raises `SimError` where no plan meets the SLO in the busiest one."""
    check_open(trace)
    if not interval > 0:
        raise ConfigurationError(f"interval {interval}: must be above 0, s")
    pool = executor or SerialExecutor()
    bounds = _bounds(trace, interval)
    busiest = max(range(len(bounds)), key=lambda i: bounds[i][1] - bounds[i][0])
    peak = _within(trace, bounds[busiest], busiest * interval)
    progress(f"{len(bounds)} intervals; the busiest has {len(peak)} requests")
    result = Search(peak, slo, space, prices or Prices.load()).run(pool, progress=progress)
    plans = _competing(result.best, result.ranking)
    futures = [
        pool.submit(_size_interval, _within(trace, one, i * interval), plans, slo, interval)
        if one[1] > one[0]
        else None
        for i, one in enumerate(bounds)
    ]
    found = []
    for i, (one, future) in enumerate(zip(bounds, futures)):
        chosen, replicas, same = (0, 0, 0) if future is None else future.result()
        found.append(Interval(i * interval, interval, one[1] - one[0], plans[chosen], replicas, same))
        progress(f"interval {i + 1} of {len(bounds)}: {found[-1].num_gpus} GPUs")
    day = OverTime(trace, slo, result.best, tuple(found))
    runs = [pool.submit(autoscaled, trace, day.peak, slo, day.fixed_replicas, signal) for signal in SIGNALS]
    return replace(day, autoscalers=tuple(run.result() for run in runs))


def _bounds(trace: Trace, interval: float) -> list[tuple[int, int]]:
    """(first request, one past the last) of every interval."""
    count = max(math.ceil(trace.duration / interval), 1)
    edges = np.searchsorted(trace.arrival_time, interval * np.arange(count + 1)).tolist()
    edges[-1] = len(trace)
    return list(itertools.pairwise(edges))


def _within(trace: Trace, bounds: tuple[int, int], start: float) -> Trace:
    part = trace.select(np.arange(*bounds))
    return part.replace(arrival_time=part.arrival_time - start)


def _competing(best: Plan, ranking: Sequence[Plan]) -> list[Plan]:
    """The plan of the peak, then the best of other GPU types."""
    plans, gpus = [best], {best.candidate.deployment.gpu}
    for plan in ranking:
        if plan.candidate.deployment.gpu not in gpus and len(plans) < COMPETING:
            plans.append(plan)
            gpus.add(plan.candidate.deployment.gpu)
    return plans


def _size_interval(trace: Trace, plans: Sequence[Plan], slo: Slo, interval: float) -> tuple[int, int, int]:
    """(which plan is cheapest, its replicas, the replicas of the first plan)."""
    rate = len(trace) / interval
    guesses = [max(math.ceil(rate / plan.capacity.request_rate), 1) for plan in plans]
    same = _least(trace, plans[0], slo, guesses[0])
    best, replicas = 0, same
    for i, plan in enumerate(plans[1:], start=1):
        cost = plan.candidate.usd_per_replica
        if guesses[i] * cost < replicas * plans[best].candidate.usd_per_replica:
            least = _least(trace, plan, slo, guesses[i])
            if least * cost < replicas * plans[best].candidate.usd_per_replica:
                best, replicas = i, least
    return best, replicas, same


def _least(trace: Trace, plan: Plan, slo: Slo, guess: int) -> int:
    """The fewest replicas that meet the SLO on *trace*, searched from *guess*."""
    if _holds(trace, plan, slo, guess):
        while guess > 1 and _holds(trace, plan, slo, guess - 1):
            guess -= 1
        return guess
    while not _holds(trace, plan, slo, guess + 1):
        guess += 1
        if guess > len(trace):
            raise ConfigurationError(f"{plan.candidate.name}: a replica for each request does not meet {slo}")
    return guess + 1


def _holds(trace: Trace, plan: Plan, slo: Slo, replicas: int) -> bool:
    return plan.with_replicas(replicas).probe(trace, slo).met
