"""The cheapest deployment that meets the SLO on a trace.

1. The analytic bound of every choice says what it costs at least; choices are taken in that order, and those that
   cannot undercut the best of their GPU type are pruned.
2. A choice that may is simulated once at the rate that it would need to be cheaper. If it holds there, its capacity is
   found by bisection.
3. The best plans of each GPU type are run with all their replicas on the whole trace, and the number of replicas is
   corrected to what that shows.
4. The cheapest is confirmed on fresh traffic, longer than the trace; it gets another replica until the SLO holds
with the
   stated confidence, or gives way to the next that is cheaper by then.

Work is handed out in rounds of a fixed size, so that the answer does not depend on the number of workers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from simulator.analytic import Traffic
from simulator.errors import CapacityError, ConfigurationError
from simulator.sizing.candidates import Candidate, SearchSpace, Skipped, screen
from simulator.sizing.capacity import PROBE_REQUESTS, Capacity, Probe, find_capacity, probe
from simulator.sizing.plan import Confirmation, Plan
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.prices import Prices
from simulator.sizing.slo import Attained, Slo
from simulator.sizing.traffic import check_open, part_of, resampled
from simulator.workload import Trace

__all__ = ["Search", "SearchResult", "confirm"]

ROUND = 8
SCREENED_TOGETHER = 20
TYPICAL = 0.6
"""Share of the analytic bound that a percentile SLO leaves, for the first guess of the number of replicas."""
MOST_REPLICAS = 10_000
CONFIRM_FACTOR = 2
MOST_CONFIRM_REQUESTS = 60_000
CORRECTED = 3
"""Plans per search, beside the best of each GPU type, that are run with all their replicas."""


@dataclass(frozen=True)
class Search:
    """What is asked. *max_cost*: $ per hour. *confirm_runs*: independent runs for the confidence *level*."""

    trace: Trace
    slo: Slo
    space: SearchSpace
    prices: Prices = field(default_factory=Prices.load)
    max_cost: float = math.inf
    confirm_runs: int = 3
    level: float = 0.95
    requests: int = PROBE_REQUESTS
    seed: int = 0

    def __post_init__(self) -> None:
        check_open(self.trace)
        if not self.max_cost > 0:
            raise ConfigurationError(f"max_cost {self.max_cost}: must be above 0, $ per hour")
        if self.confirm_runs < 2:
            raise ConfigurationError(f"{self.confirm_runs} confirming runs: a confidence needs at least 2")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"confidence {self.level}: must be between 0 and 1")

    @property
    def request_rate(self) -> float:
        """Of the whole trace, 1/s."""
        return self.trace.request_rate

    def run(
        self,
        executor: Executor | None = None,
        *,
        exhaustive: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> SearchResult:
        """The plans, cheapest first. *exhaustive*: nothing is pruned. Raises `CapacityError` if there is none."""
        pool = executor or SerialExecutor()
        traffic = Traffic.of_trace(self.trace)
        candidates, skipped = self._screened(pool, traffic)
        progress(f"{len(candidates)} choices fit, {len(skipped)} do not")
        plans, hopeless = self._capacities(pool, candidates, skipped, exhaustive, progress)
        if not plans:
            raise CapacityError(self._nearest(hopeless, skipped))
        ranking = self._corrected(pool, sorted(plans, key=lambda plan: plan.order), skipped, progress)
        best, others = self._confirmed(pool, ranking, skipped, progress)
        return SearchResult(self, best, [best, *sorted(others, key=lambda plan: plan.order)], skipped)

    def _screened(self, pool: Executor, traffic: Traffic) -> tuple[list[Candidate], list[Skipped]]:
        deployments = list(self.space.deployments())
        judge = partial(screen, traffic=traffic, prices=self.prices, tpot_s=self.slo.limit("tpot"))
        found = list(pool.map(judge, deployments, chunksize=SCREENED_TOGETHER))
        skipped = [one for one in found if isinstance(one, Skipped)]
        candidates = [one for one in found if isinstance(one, Candidate)]
        rate = self.request_rate
        candidates.sort(key=lambda one: (one.least_cost(rate), one.name))
        if not candidates:
            raise CapacityError(f"no choice is possible: {skipped[0].name}: {skipped[0].why}")
        return candidates, skipped

    def _capacities(
        self,
        pool: Executor,
        candidates: list[Candidate],
        skipped: list[Skipped],
        exhaustive: bool,
        progress: Callable[[str], None],
    ) -> tuple[list[Plan], list[tuple[Candidate, Probe]]]:
        """A plan for every choice worth it, and what the choices that never meet the SLO look like unloaded."""
        best: dict[str, float] = {}
        plans: list[Plan] = []
        hopeless: list[tuple[Candidate, Probe]] = []
        waiting = list(candidates)
        while waiting:
            chosen, waiting = self._next_round(waiting, best, skipped, exhaustive)
            jobs = [
                (one, math.inf if exhaustive else best.get(one.deployment.gpu, math.inf)) for one in chosen
            ]
            futures = [
                pool.submit(evaluate, self.trace, one, self.slo, self.requests, cost) for one, cost in jobs
            ]
            for one, future in zip(chosen, futures):
                outcome = future.result()
                if isinstance(outcome, Skipped):
                    skipped.append(outcome)
                elif outcome.request_rate == 0:
                    hopeless.append((one, outcome.unloaded))
                    skipped.append(Skipped(one.name, "simulation", _misses(outcome.unloaded.worst)))
                else:
                    plans.append(self._plan(one, outcome))
                    gpu = one.deployment.gpu
                    best[gpu] = min(best.get(gpu, math.inf), plans[-1].usd_per_hour)
            progress(f"{len(plans)} capacities found, {len(waiting)} choices left")
        return plans, hopeless

    def _next_round(
        self, waiting: list[Candidate], best: dict[str, float], skipped: list[Skipped], exhaustive: bool
    ) -> tuple[list[Candidate], list[Candidate]]:
        chosen: list[Candidate] = []
        rest: list[Candidate] = []
        for one in waiting:
            least, gpu = one.least_cost(self.request_rate), one.deployment.gpu
            if not exhaustive and least >= best.get(gpu, math.inf):
                why = f"costs ${least:.2f}/h at least, the best of its GPU type ${best[gpu]:.2f}/h"
                skipped.append(Skipped(one.name, "bound", why))
            elif len(chosen) < ROUND and (exhaustive or sum(c.deployment.gpu == gpu for c in chosen) < 2):
                chosen.append(one)
            else:
                rest.append(one)
        return chosen, rest

    def _plan(self, candidate: Candidate, capacity: Capacity) -> Plan:
        replicas = math.ceil(self.request_rate / capacity.request_rate)
        if replicas > MOST_REPLICAS:
            raise CapacityError(
                f"{candidate.name}: {replicas} replicas; at most {MOST_REPLICAS} are simulated"
            )
        return Plan(candidate, capacity, self.request_rate, replicas)

    def _corrected(
        self, pool: Executor, plans: list[Plan], skipped: list[Skipped], progress: Callable[[str], None]
    ) -> list[Plan]:
        """The best of each GPU type and the cheapest few with the number of replicas that the whole trace shows."""
        leaders = {plan.candidate.deployment.gpu: plan for plan in reversed(plans)}
        chosen = [plan for i, plan in enumerate(plans) if i < CORRECTED or plan in leaders.values()]
        progress(f"{len(chosen)} plans on the whole trace")
        futures = [pool.submit(correct, self.trace, plan, self.slo) for plan in chosen]
        found = [future.result() for future in futures]
        skipped += [one for one in found if isinstance(one, Skipped)]
        corrected = [one for one in found if isinstance(one, Plan)]
        rest = [plan for plan in plans if plan not in chosen]
        return sorted([*corrected, *rest], key=lambda plan: plan.order)

    def _confirmed(
        self, pool: Executor, plans: Sequence[Plan], skipped: list[Skipped], progress: Callable[[str], None]
    ) -> tuple[Plan, list[Plan]]:
        """The cheapest plan that holds on fresh traffic, and the others, with the replicas they need."""
        heap = [(plan.order, i, plan) for i, plan in enumerate(plans)]
        heapq.heapify(heap)
        while heap:
            _, i, plan = heapq.heappop(heap)
            if plan.usd_per_hour > self.max_cost:
                raise CapacityError(
                    f"no plan within ${self.max_cost:g}/h: the cheapest that meets {self.slo} is {plan.replicas} x "
                    f"({plan.candidate.name}) for ${plan.usd_per_hour:.2f}/h"
                )
            if plan.run is None:
                corrected = correct(self.trace, plan, self.slo)
                if isinstance(corrected, Skipped):
                    skipped.append(corrected)
                    continue
                plan = corrected
                if heap and heap[0][0] < plan.order:
                    heapq.heappush(heap, (plan.order, i, plan))
                    continue
            progress(f"confirming {plan.replicas} x ({plan.candidate.name})")
            confirmation = confirm(self, plan, pool)
            if confirmation.met:
                return replace(plan, confirmation=confirmation), [other for _, _, other in heap]
            more = plan.with_replicas(plan.replicas + 1)
            heapq.heappush(
                heap, (more.order, i, replace(more, run=probe(self.trace, more.deployment, self.slo)))
            )
        raise CapacityError(f"no plan: {skipped[-1].name}: {skipped[-1].why}")

    def _nearest(self, hopeless: list[tuple[Candidate, Probe]], skipped: list[Skipped]) -> str:
        """Which objective is out of reach, by how much, and what comes nearest."""
        if not hopeless:
            return f"no plan: {skipped[0].name}: {skipped[0].why}"
        one, nearest = min(hopeless, key=lambda pair: (pair[1].worst.ratio, pair[0].name))
        return f"no plan meets {self.slo}: {_misses(nearest.worst)}, which is the nearest: {one.name}"


@dataclass(frozen=True)
class SearchResult:
    """The answer: *best*, every plan by cost (*best* among them), and what was not followed to the end."""

    search: Search
    best: Plan
    ranking: list[Plan]
    skipped: list[Skipped]


def evaluate(
    trace: Trace, candidate: Candidate, slo: Slo, requests: int, cost_to_beat: float
) -> Capacity | Skipped:
    """The capacity of *candidate*, or why it cannot undercut *cost_to_beat* ($ per hour)."""
    rate = trace.request_rate
    replicas = max(math.ceil(rate / (TYPICAL * candidate.bound)), 1)
    if cost_to_beat < math.inf:
        allowed = math.ceil(cost_to_beat / candidate.usd_per_replica) - 1
        if allowed < 1:
            return Skipped(candidate.name, "bound", f"one replica costs more than ${cost_to_beat:.2f}/h")
        part, some = part_of(trace, allowed, requests)
        run = probe(part.with_request_rate(rate / allowed * some), _replicated(candidate, some), slo)
        if not run.met:
            why = f"{allowed} replicas would be cheaper than ${cost_to_beat:.2f}/h: {_misses(run.worst)}"
            return Skipped(candidate.name, "simulation", why)
        replicas = allowed
    return find_capacity(trace, candidate.deployment, slo, replicas=replicas, requests=requests)


def correct(trace: Trace, plan: Plan, slo: Slo) -> Plan | Skipped:
    """*plan* with the fewest replicas that meet the SLO on the whole *trace*."""
    guess, run = plan.replicas, probe(trace, plan.deployment, slo)
    while not run.met:
        if plan.replicas >= 2 * plan.request_rate / plan.capacity.request_rate + 2:
            return Skipped(
                plan.candidate.name, "simulation", f"{plan.replicas} replicas do not do: {_misses(run.worst)}"
            )
        plan = plan.with_replicas(plan.replicas + 1)
        run = probe(trace, plan.deployment, slo)
    while 1 < plan.replicas <= guess:
        fewer = plan.with_replicas(plan.replicas - 1)
        less = probe(trace, fewer.deployment, slo)
        if not less.met:
            break
        plan, run = fewer, less
    return replace(plan, run=run)


def confirm(search: Search, plan: Plan, pool: Executor) -> Confirmation:
    """Independent runs of *plan* on fresh traffic, `CONFIRM_FACTOR` times as long where the trace allows it."""
    wanted = min(CONFIRM_FACTOR * len(search.trace), max(MOST_CONFIRM_REQUESTS, len(search.trace)))
    seeds = [1000 + search.seed * search.confirm_runs + i for i in range(search.confirm_runs)]
    futures = [pool.submit(_fresh, search.trace, plan.deployment, search.slo, seed, wanted) for seed in seeds]
    runs = tuple(future.result() for future in futures)
    return Confirmation(runs, len(resampled(search.trace, seeds[0], wanted)), search.level)


def _fresh(trace: Trace, deployment: Any, slo: Slo, seed: int, requests: int) -> Probe:
    return probe(resampled(trace, seed, requests), deployment, slo)


def _replicated(candidate: Candidate, replicas: int) -> Any:
    return candidate.deployment.model_copy(update={"num_replicas": replicas})


def _misses(worst: Attained) -> str:
    wanted = worst.objective.wanted
    if worst.objective.share is not None:
        return f"{worst.objective}: only {worst.value:.1%} of the requests are within the limits, {wanted:.0%} wanted"
    if math.isinf(worst.value):
        return f"{worst.objective}: requests are turned away or never finish"
    if worst.met:
        return f"the queue grows without end ({worst.objective} is still met, at {worst.value:.4g} ms)"
    return (
        f"{worst.objective}: {worst.value:.4g} ms at best, {worst.ratio:.2f} times the limit of {wanted:g} ms"
    )
