"""The cheapest deployment that meets the SLO on a trace.

1. The analytic bound of every choice says what it costs at least; choices are taken in that order, and those that
   cannot undercut the best of their GPU type are pruned.
2. A choice that may is simulated once at the rate that it would need to be cheaper. If it holds there, its capacity is
   found by bisection.
3. The best plans of each GPU type are run with all their replicas on the whole trace, and the number of replicas is
   corrected to what that shows.
4. The cheapest is confirmed on fresh traffic, longer than the trace; it gets another replica until the SLO holds
   with the stated confidence, or gives way to the next that is cheaper by then.

A space of more than `LARGE_SPACE` choices is not looked at in full: Optuna draws from it (`sampled`) in place of the
first two steps. Work is handed out in rounds of a fixed size: the answer does not depend on the number of workers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from simulator.analytic import Traffic
from simulator.errors import CapacityError, ConfigurationError, UnknownNameError
from simulator.sizing.candidates import LARGE_SPACE, Candidate, SearchSpace, Skipped, ToBeat, screen
from simulator.sizing.capacity import PROBE_REQUESTS, Capacity, Probe
from simulator.sizing.evaluation import confirm, correct, evaluate, look_at, misses, too_dear
from simulator.sizing.plan import Plan
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.prices import Prices
from simulator.sizing.sampled import Sampled, draw
from simulator.sizing.slo import Slo
from simulator.sizing.traffic import check_open
from simulator.workload import Trace

__all__ = ["METHODS", "Search", "SearchResult"]

METHODS = {
    "auto": "the analytic bound, or Optuna in a large space",
    "bound": "the analytic bound: every choice is screened, what cannot be the cheapest of its GPU type is pruned",
    "exhaustive": "exhaustion: nothing is pruned",
    "optuna": "Optuna: draws, then a descent from the best",
}
ROUND = 8
SCREENED_TOGETHER = 20
MOST_REPLICAS = 10_000
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
    method: str = "auto"
    """One of `METHODS`."""
    trials: int = 200
    """Draws of ``optuna``."""

    def __post_init__(self) -> None:
        check_open(self.trace)
        if self.method not in METHODS:
            raise UnknownNameError("search method", self.method, METHODS)
        if self.trials < 1:
            raise ConfigurationError(f"trials {self.trials}: must be at least 1")
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

    @property
    def chosen_method(self) -> str:
        """What ``auto`` comes to in this space."""
        if self.method != "auto":
            return self.method
        return "bound" if len(self.space) <= LARGE_SPACE else "optuna"

    def run(
        self, executor: Executor | None = None, *, progress: Callable[[str], None] = lambda text: None
    ) -> SearchResult:
        """The plans, cheapest first. Raises `CapacityError` if there is none."""
        pool = executor or SerialExecutor()
        progress(f"{len(self.space)} choices, searched by {METHODS[self.chosen_method]}")
        by_draws = self.chosen_method == "optuna"
        found = self._drawn(pool, progress) if by_draws else self._bounded(pool, progress)
        if not found.plans:
            raise CapacityError(self._nearest(found))
        plans, skipped = sorted(found.plans, key=lambda plan: plan.order), found.skipped
        ranking = self._corrected(pool, plans, skipped, progress)
        best, others = self._confirmed(pool, ranking, skipped, progress)
        ranking = [best, *sorted(others, key=lambda plan: plan.order)]
        return SearchResult(self, best, ranking, skipped, found.looked_at)

    def _bounded(self, pool: Executor, progress: Callable[[str], None]) -> Found:
        found = Found()
        candidates = self._screened(pool, found)
        progress(f"{len(candidates)} choices fit, {len(found.skipped)} do not")
        self._capacities(pool, candidates, found, progress)
        found.looked_at = len(self.space)
        return found

    def _drawn(self, pool: Executor, progress: Callable[[str], None]) -> Found:
        judge = partial(
            screen, traffic=Traffic.of_trace(self.trace), prices=self.prices, tpot_s=self.slo.limit("tpot")
        )
        look = partial(look_at, self.trace, self.slo, self.requests, judge)
        sampled, found = Sampled(self.space, self.request_rate, look, pool), Found()
        draw(sampled, self.trials, self.seed, progress)
        for outcome in sampled.outcomes:
            if isinstance(outcome.candidate, Skipped):
                found.skipped.append(outcome.candidate)
            else:
                assert outcome.capacity is not None
                self._note(outcome.candidate, outcome.capacity, found)
        found.looked_at = len(sampled.seen)
        return found

    def _screened(self, pool: Executor, into: Found) -> list[Candidate]:
        judge = partial(
            screen, traffic=Traffic.of_trace(self.trace), prices=self.prices, tpot_s=self.slo.limit("tpot")
        )
        found = list(pool.map(judge, self.space.choices(), chunksize=SCREENED_TOGETHER))
        into.skipped += [one for one in found if isinstance(one, Skipped)]
        rate = self.request_rate
        candidates = [one for one in found if isinstance(one, Candidate)]
        return sorted(candidates, key=lambda one: (one.least_cost(rate), one.name))

    def _capacities(
        self, pool: Executor, candidates: list[Candidate], found: Found, progress: Callable[[str], None]
    ) -> None:
        """A plan for every choice worth it, and what the choices that never meet the SLO look like unloaded."""
        exhaustive = self.chosen_method == "exhaustive"
        waiting = list(candidates)
        while waiting:
            best = found.cheapest
            chosen, waiting = self._next_round(waiting, best, found.skipped, exhaustive)
            beat = [ToBeat() if exhaustive else best.get(one.deployment.gpu, ToBeat()) for one in chosen]
            futures = [
                pool.submit(evaluate, self.trace, one, self.slo, self.requests, target)
                for one, target in zip(chosen, beat)
            ]
            for one, future in zip(chosen, futures):
                self._note(one, future.result(), found)
            progress(f"{len(found.plans)} capacities found, {len(waiting)} choices left")

    def _note(self, candidate: Candidate, outcome: Capacity | Skipped, found: Found) -> None:
        if isinstance(outcome, Skipped):
            found.skipped.append(outcome)
        elif outcome.request_rate == 0:
            found.hopeless.append((candidate, outcome.unloaded))
            found.skipped.append(Skipped(candidate.name, "simulation", misses(outcome.unloaded.worst)))
        else:
            found.plans.append(self._plan(candidate, outcome))

    def _next_round(
        self, waiting: list[Candidate], best: dict[str, ToBeat], skipped: list[Skipped], exhaustive: bool
    ) -> tuple[list[Candidate], list[Candidate]]:
        chosen: list[Candidate] = []
        rest: list[Candidate] = []
        for one in waiting:
            gpu = one.deployment.gpu
            target = ToBeat() if exhaustive else best.get(gpu, ToBeat())
            if not one.may_beat(target, self.request_rate):
                skipped.append(too_dear(one, self.request_rate, target))
            elif len(chosen) < ROUND and (exhaustive or sum(c.deployment.gpu == gpu for c in chosen) < 2):
                chosen.append(one)
            else:
                rest.append(one)
        return chosen, rest

    def _plan(self, candidate: Candidate, capacity: Capacity) -> Plan:
        costs = candidate.costs(capacity.request_rate, self.request_rate)
        replicas = round(costs.whole / candidate.usd_per_replica)
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
            confirmation = confirm(
                self.trace, plan, self.slo, pool, runs=self.confirm_runs, level=self.level, seed=self.seed
            )
            if confirmation.met:
                return replace(plan, confirmation=confirmation), [other for _, _, other in heap]
            more = plan.with_replicas(plan.replicas + 1)
            heapq.heappush(heap, (more.order, i, replace(more, run=more.probe(self.trace, self.slo))))
        raise CapacityError(f"no plan: {skipped[-1].name}: {skipped[-1].why}")

    def _nearest(self, found: Found) -> str:
        """Which objective is out of reach, by how much, and what comes nearest."""
        if found.hopeless:
            one, nearest = min(found.hopeless, key=lambda pair: (pair[1].worst.ratio, pair[0].name))
            return f"no plan meets {self.slo}: {misses(nearest.worst)}, which is the nearest: {one.name}"
        order = ("bound", "simulation", "price", "impossible")
        first = min(found.skipped, key=lambda one: (order.index(one.stage), one.ratio or math.inf))
        if first.ratio is None:
            count = len(found.skipped)
            return f"no plan: none of {count} choices can run; {first.name}: {first.why}"
        return f"no plan meets {self.slo}: {first.why}, {first.ratio:.2f} times as long, on the nearest: {first.name}"


@dataclass
class Found:
    """What a search has come upon: plans, what never meets the SLO with how it does unloaded, and what was left out."""

    plans: list[Plan] = field(default_factory=list)
    hopeless: list[tuple[Candidate, Probe]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    looked_at: int = 0

    @property
    def cheapest(self) -> dict[str, ToBeat]:
        """What the best plan of each GPU type costs."""
        best: dict[str, ToBeat] = {}
        for plan in self.plans:
            gpu = plan.candidate.deployment.gpu
            best[gpu] = min(best.get(gpu, ToBeat()), plan.costs)
        return best


@dataclass(frozen=True)
class SearchResult:
    """The answer: *best*, every plan by cost (*best* among them), and what was not followed to the end."""

    search: Search
    best: Plan
    ranking: list[Plan]
    skipped: list[Skipped]
    looked_at: int
    """Choices that were screened at least."""
