"""From capacities to one plan: the whole trace, fresh traffic, and a second look at what was pruned too early.

A capacity comes from a part of the trace. With all its replicas on the whole trace a plan may need more of them, and
on fresh traffic more again; each number of replicas that did not do is kept with its reason. Choices were pruned
against what the best plans seemed to cost by their capacities. Once the cheapest plan that holds costs more than that,
those that could undercut it are evaluated after all: what is pruned for good could not be the answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from simulator.sizing.candidates import Candidate, Skipped, ToBeat
from simulator.sizing.capacity import Capacity
from simulator.sizing.evaluation import (
    MOST_REPLICAS,
    confirm,
    correct,
    evaluate,
    gives_up,
    hopeless,
    not_confirmed,
    too_many,
)
from simulator.sizing.plan import Plan
from simulator.sizing.question import Question

__all__ = ["Decision", "Found"]

CORRECTED = 3
"""Plans per search, beside the best of each GPU type, that are run with all their replicas."""


@dataclass
class Found:
    """What a search has come upon: plans, and what was left out, *pruned* where a dearer best would let it in again."""

    plans: list[Plan] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    pruned: list[tuple[Candidate, Skipped, ToBeat]] = field(default_factory=list)
    looked_at: int = 0

    @property
    def cheapest(self) -> dict[str, ToBeat]:
        """What the best plan of each GPU type costs."""
        best: dict[str, ToBeat] = {}
        for plan in self.plans:
            gpu = plan.candidate.deployment.gpu
            best[gpu] = min(best.get(gpu, ToBeat()), plan.costs)
        return best

    def note(self, candidate: Candidate, outcome: Capacity | Skipped, target: ToBeat, rate: float) -> None:
        """Keep what became of *candidate*, which had to be better than *target* at *rate* requests/s."""
        if isinstance(outcome, Skipped):
            self.pruned.append((candidate, outcome, target))
            self.skipped.append(outcome)
        elif outcome.request_rate == 0:
            self.skipped.append(hopeless(candidate, outcome.unloaded))
        else:
            replicas = round(candidate.costs(outcome.request_rate, rate).whole / candidate.usd_per_replica)
            if replicas > MOST_REPLICAS:
                self.skipped.append(too_many(candidate, replicas))
            else:
                self.plans.append(Plan(candidate, outcome, rate, replicas))

    def reopen(self, best: ToBeat, rate: float) -> list[Candidate]:
        """What was pruned against less than *best* and may be better than it; no longer skipped."""
        again = [one for one in self.pruned if one[2] < best and one[0].may_beat(best, rate)]
        for one in again:
            self.pruned.remove(one)
            self.skipped.remove(one[1])
        return [candidate for candidate, _, _ in again]


@dataclass
class Decision:
    """The last steps of *search*, from what it *found*."""

    search: Question
    pool: Executor
    found: Found
    progress: Callable[[str], None]

    def made(self) -> tuple[Plan | None, list[Plan]]:
        """(the cheapest plan that is confirmed, every plan by cost with that one first); None where none is."""
        best, others = self._confirmed(self._corrected(self.found.plans))
        while fresh := self._second_look(ToBeat() if best is None else best.costs):
            best, others = self._confirmed([*([] if best is None else [best]), *others, *fresh])
        ranking = sorted(others, key=lambda plan: plan.order)
        return best, ranking if best is None else [best, *ranking]

    def _second_look(self, target: ToBeat) -> list[Plan]:
        """Plans that may be better than *target* among what was pruned against costs that turned out too low."""
        search, known = self.search, len(self.found.plans)
        again = self.found.reopen(target, search.request_rate)
        if again:
            self.progress(f"{len(again)} choices again: the best costs more than they were held against")
        futures = [
            self.pool.submit(evaluate, search.trace, one, search.slo, search.requests, target)
            for one in again
        ]
        for one, future in zip(again, futures):
            self.found.note(one, future.result(), target, search.request_rate)
        return self.found.plans[known:]

    def _corrected(self, plans: Sequence[Plan]) -> list[Plan]:
        """The best of each GPU type and the cheapest few with the number of replicas that the whole trace shows."""
        plans = sorted(plans, key=lambda plan: plan.order)
        leaders = {plan.candidate.deployment.gpu: plan for plan in reversed(plans)}
        chosen = [plan for i, plan in enumerate(plans) if i < CORRECTED or plan in leaders.values()]
        self.progress(f"{len(chosen)} plans on the whole trace")
        futures = [self.pool.submit(correct, self.search.trace, plan, self.search.slo) for plan in chosen]
        found = [future.result() for future in futures]
        self.found.skipped += [one for one in found if isinstance(one, Skipped)]
        return [
            *(one for one in found if isinstance(one, Plan)),
            *(plan for plan in plans if plan not in chosen),
        ]

    def _confirmed(self, plans: Sequence[Plan]) -> tuple[Plan | None, list[Plan]]:
        """The cheapest plan that holds on fresh traffic, and the others, with the replicas they need."""
        heap = [(plan.order, i, plan) for i, plan in enumerate(plans)]
        heapq.heapify(heap)
        while heap:
            _, i, plan = heapq.heappop(heap)
            if plan.confirmation is not None:
                return plan, [other for _, _, other in heap]
            tried = self._tried(plan)
            if isinstance(tried, Skipped):
                self.found.skipped.append(tried)
            else:
                heapq.heappush(heap, (tried.order, i, tried))
        return None, []

    def _tried(self, plan: Plan) -> Plan | Skipped:
        """*plan* one step on: run in full, confirmed, or with another replica."""
        search = self.search
        if plan.run is None:
            return correct(search.trace, plan, search.slo)
        self.progress(f"confirming {plan.replicas} x ({plan.candidate.name})")
        confirmation = confirm(search, plan.system, plan.replicas, self.pool)
        if confirmation.met:
            return replace(plan, confirmation=confirmation)
        plan = plan.ruled_out(not_confirmed(confirmation))
        if plan.replicas >= plan.most_replicas:
            return gives_up(plan, confirmation.attained)
        more = plan.with_replicas(plan.replicas + 1)
        return replace(more, run=more.probe(search.trace, search.slo))
