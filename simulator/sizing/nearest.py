"""Where nothing meets the SLO within the bill: what comes nearest, what breaks and by how much, and what would do.

Every choice that can run is held against the SLO. How far it is from it is the largest ratio of an objective to its
limit. Where a bill is set, each gets the replicas that it buys; where no number of replicas meets the SLO, a replica
with next to nothing to do (`LEAST_LOAD`) says how near one can come. The nearest is that with the smallest ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from hwprofiles import load_profile
from simulator.sizing.candidates import ROUNDING, Choice, Skipped
from simulator.sizing.capacity import Probe, find_capacity, probe, unloaded
from simulator.sizing.decision import Found
from simulator.sizing.evaluation import confirm, misses
from simulator.sizing.plan import Confirmation, Plan
from simulator.sizing.question import Question
from simulator.sizing.slo import Attained
from simulator.sizing.traffic import part_of

__all__ = ["out_of_reach"]


def out_of_reach(asked: Question, found: Found, pool: Executor, best: Plan | None) -> str:
    """One line; *best* is the cheapest plan that meets the SLO whatever it costs, None where none does."""
    if best is not None:
        return _above_the_bill(asked, found, pool, best)
    runs = [one for one in found.skipped if one.choice is not None and one.stage != "impossible"]
    return _above_the_slo(asked, runs, pool) if runs else _none_runs(found.skipped)


def _none_runs(skipped: Sequence[Skipped]) -> str:
    """The reason of the choice with the most memory."""

    def memory(one: Skipped) -> float:
        if one.choice is None:
            return 0.0
        return one.choice.num_gpus * load_profile(one.choice.deployment.gpu).memory_bytes

    largest = max(skipped, key=memory)
    return f"no plan: none of {len(skipped)} choices can run; {largest.name}: {largest.why}"


def _above_the_slo(asked: Question, runs: Sequence[Skipped], pool: Executor) -> str:
    """What a bound ruled out is simulated now."""
    futures = [(one, pool.submit(_idle, asked, one)) for one in runs if not one.attained]
    tried = [replace(one, attained=future.result().attained) for one, future in futures]
    nearest = min([*tried, *(one for one in runs if one.attained)], key=lambda one: (one.ratio, one.name))
    missed = [one.shortfall for one in nearest.attained if not one.met]
    return (
        f"no plan meets {asked.slo}, with however many replicas. The nearest of {len(runs)} choices that run is "
        f"{nearest.name}: {'; '.join(missed) or nearest.why}. {_way_out(asked, nearest, pool)}"
    )


def _idle(asked: Question, one: Skipped) -> Probe:
    assert one.choice is not None
    return unloaded(asked.trace, one.choice.deployment, asked.slo, asked.requests, one.choice.split)


def _way_out(asked: Question, nearest: Skipped, pool: Executor) -> str:
    """The SLO that one idle replica of *nearest* meets."""
    assert nearest.choice is not None
    slow = asked.trace.with_request_rate(_idle(asked, nearest).request_rate)
    fresh = confirm(replace(asked, trace=slow), nearest.choice.system(1), 1, pool)
    looser = _looser(nearest.attained, fresh)
    return f"It would take {looser}" if looser else "No looser SLO helps"


def _looser(attained: Sequence[Attained], fresh: Confirmation) -> str:
    """The SLO that is met by *attained* and by *fresh* traffic, as options; empty where none is."""
    worst = [max(pair, key=lambda one: one.ratio) for pair in zip(attained, fresh.attained)]
    if any(math.isinf(one.ratio) for one in worst) or all(one.met for one in worst):
        return ""
    options = " ".join(f"--slo {one.objective.looser(one.ratio)}" for one in worst)
    return f"{options}, which it meets on fresh traffic with {fresh.level:.0%} confidence"


@dataclass(frozen=True)
class _Bought:
    """What the bill buys of *choice*."""

    choice: Choice
    replicas: int
    usd_per_hour: float
    run: Probe

    @property
    def order(self) -> tuple[bool, float, str]:
        """Nearest to the SLO first; a queue that grows is further than any ratio."""
        return self.run.overloaded, self.run.worst.ratio, self.choice.name


def _above_the_bill(asked: Question, found: Found, pool: Executor, best: Plan) -> str:
    head = f"no plan within ${asked.max_cost:g}/h meets {asked.slo}"
    times = best.usd_per_hour / asked.max_cost
    dear = f"${best.usd_per_hour:.2f}/h, {times:.2f} times the bill, for {best.replicas} x ({best.candidate.name})"
    bought = _within(asked, found, pool)
    if not bought:
        return f"{head}, which does not buy one replica. It would take {dear}"
    nearest = min(bought, key=lambda one: one.order)
    what = f"{nearest.replicas} x ({nearest.choice.name}) for ${nearest.usd_per_hour:.2f}/h"
    ways = [dear, _for_the_bill(asked, nearest, pool), _less_traffic(asked, found, nearest)]
    return (
        f"{head}. The nearest that it buys is {what}: {misses(nearest.run)}. "
        f"It would take {'; or '.join(way for way in ways if way)}"
    )


def _within(asked: Question, found: Found, pool: Executor) -> list[_Bought]:
    """Every choice that can run, with as many replicas as the bill buys."""
    candidates = [plan.candidate for plan in found.plans]
    prices = {one.name: (one.choice, one.usd_per_replica) for one in candidates}
    for one in found.skipped:
        if one.choice is not None and one.stage != "impossible" and one.usd_per_hour is not None:
            prices[one.name] = one.choice, one.usd_per_hour / one.replicas
    counted = [(choice, usd, int(asked.max_cost / usd + ROUNDING)) for choice, usd in prices.values()]
    futures = [
        (choice, count, usd, pool.submit(_run, asked, choice, count))
        for choice, usd, count in counted
        if count
    ]
    return [_Bought(choice, count, count * usd, future.result()) for choice, count, usd, future in futures]


def _run(asked: Question, choice: Choice, replicas: int) -> Probe:
    part, some = part_of(asked.trace, replicas, asked.requests)
    return probe(part, choice.system(some), asked.slo, some)


def _for_the_bill(asked: Question, nearest: _Bought, pool: Executor) -> str:
    """The SLO that *nearest* meets on the whole trace and, with the confidence asked for, on fresh traffic."""
    if nearest.run.overloaded:
        return ""
    system = nearest.choice.system(nearest.replicas)
    whole = probe(asked.trace, system, asked.slo, nearest.replicas)
    return _looser(whole.attained, confirm(asked, system, nearest.replicas, pool))


def _less_traffic(asked: Question, found: Found, nearest: _Bought) -> str:
    """The requests/s that the bill serves within the SLO: by the capacities, or the bound where a short trace ends
    before its queue has grown."""
    choice, count = nearest.choice, nearest.replicas
    own = find_capacity(
        asked.trace, choice.deployment, asked.slo, replicas=count, requests=asked.requests, split=choice.split
    )
    counts = [int(asked.max_cost / plan.candidate.usd_per_replica + ROUNDING) for plan in found.plans]
    capacities = [(count, own), *((n, plan.capacity) for n, plan in zip(counts, found.plans))]
    most = max(n * min(capacity.request_rate, capacity.bound) for n, capacity in capacities)
    if not 0 < most < asked.request_rate:
        return ""
    return f"at most about {most:.3g} of the {asked.request_rate:.3g} requests/s"
