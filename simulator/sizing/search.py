"""The cheapest deployment that meets the SLO on a trace.

1. The analytic bound of every choice says what it costs at least; choices are taken in that order, and those that
   cannot undercut the best of their GPU type are pruned.
2. A choice that may is simulated once at the rate that it would need to be cheaper. If it holds there, its capacity is
   found by bisection.
3. The best plans of each GPU type are run with all their replicas on the whole trace, and the number of replicas is
   corrected to what that shows.
4. The cheapest is confirmed on fresh traffic, longer than the trace; it gets another replica until the SLO holds
   with the stated confidence, or gives way to the next that is cheaper by then (`decision`). Where it ends dearer than
   what choices were pruned against, those are looked at again.

A space of more than `LARGE_SPACE` choices is not looked at in full: Optuna draws from it (`sampled`) in place of the
first two steps. Work is handed out in rounds of a fixed size: the answer does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from simulator.analytic import Traffic
from simulator.errors import CapacityError
from simulator.sizing.candidates import Candidate, Skipped, ToBeat, screen
from simulator.sizing.decision import Decision, Found
from simulator.sizing.evaluation import evaluate, look_at, too_dear
from simulator.sizing.nearest import out_of_reach
from simulator.sizing.plan import Plan
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.question import METHODS, Question
from simulator.sizing.sampled import Sampled, draw

__all__ = ["Search", "SearchResult"]

ROUND = 8
SCREENED_TOGETHER = 20


@dataclass(frozen=True)
class Search(Question):
    """A question with the way to its answer."""

    def run(
        self, executor: Executor | None = None, *, progress: Callable[[str], None] = lambda text: None
    ) -> SearchResult:
        """The plans, cheapest first. Raises `CapacityError` if there is none."""
        pool = executor or SerialExecutor()
        progress(f"{len(self.space)} choices, searched by {METHODS[self.chosen_method]}")
        by_draws = self.chosen_method == "optuna"
        found = self._drawn(pool, progress) if by_draws else self._bounded(pool, progress)
        decision = Decision(self, pool, found, progress)
        best, ranking = decision.made()
        if best is None or best.usd_per_hour > self.max_cost:
            raise CapacityError(out_of_reach(self, found, pool, best))
        return SearchResult(self, best, ranking, found.skipped, found.looked_at)

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
                found.note(outcome.candidate, outcome.capacity, outcome.beaten_by, self.request_rate)
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
            chosen, waiting = self._next_round(waiting, best, found, exhaustive)
            beat = [ToBeat() if exhaustive else best.get(one.deployment.gpu, ToBeat()) for one in chosen]
            futures = [
                pool.submit(evaluate, self.trace, one, self.slo, self.requests, target)
                for one, target in zip(chosen, beat)
            ]
            for one, target, future in zip(chosen, beat, futures):
                found.note(one, future.result(), target, self.request_rate)
            progress(f"{len(found.plans)} capacities found, {len(waiting)} choices left")

    def _next_round(
        self, waiting: list[Candidate], best: dict[str, ToBeat], found: Found, exhaustive: bool
    ) -> tuple[list[Candidate], list[Candidate]]:
        chosen: list[Candidate] = []
        rest: list[Candidate] = []
        for one in waiting:
            gpu = one.deployment.gpu
            target = ToBeat() if exhaustive else best.get(gpu, ToBeat())
            if not one.may_beat(target, self.request_rate):
                found.note(one, too_dear(one, self.request_rate, target), target, self.request_rate)
            elif len(chosen) < ROUND and (exhaustive or sum(c.deployment.gpu == gpu for c in chosen) < 2):
                chosen.append(one)
            else:
                rest.append(one)
        return chosen, rest


@dataclass(frozen=True)
class SearchResult:
    """The answer: *best*, every plan by cost (*best* among them), and what was not followed to the end."""

    search: Search
    best: Plan
    ranking: list[Plan]
    skipped: list[Skipped]
    looked_at: int
    """Choices that were screened at least."""
