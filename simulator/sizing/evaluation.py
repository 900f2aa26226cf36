"""What is tried with one choice: a first run, its capacity, all its replicas, and fresh traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.sizing.candidates import Candidate, Choice, Skipped, ToBeat
from simulator.sizing.capacity import Capacity, Probe, find_capacity, probe
from simulator.sizing.plan import Confirmation, Plan
from simulator.sizing.question import Question
from simulator.sizing.sampled import Outcome
from simulator.sizing.slo import Attained, Slo
from simulator.sizing.traffic import part_of, resampled
from simulator.workload import Trace

__all__ = [
    "MOST_REPLICAS",
    "confirm",
    "correct",
    "evaluate",
    "gives_up",
    "hopeless",
    "look_at",
    "misses",
    "not_confirmed",
    "too_dear",
    "too_many",
]

TYPICAL = 0.6
"""Share of the analytic bound that a percentile SLO leaves, for the first guess of the number of replicas."""
CONFIRM_FACTOR = 2
MOST_CONFIRM_REQUESTS = 60_000
MOST_REPLICAS = 10_000


def evaluate(trace: Trace, candidate: Candidate, slo: Slo, requests: int, best: ToBeat) -> Capacity | Skipped:
    """The capacity of *candidate*, or why it cannot be better than *best*."""
    rate = trace.request_rate
    replicas = max(math.ceil(rate / (TYPICAL * candidate.bound)), 1)
    needed = candidate.rate_to_beat(best, rate)
    if needed == math.inf:
        why = f"one replica costs more than ${best.whole:.2f}/h, the best of its GPU type"
        return _skipped(candidate, "bound", why, 1)
    if needed > 0:
        replicas = math.ceil(rate / needed)
        part, some = part_of(trace, replicas, requests)
        run = probe(part.with_request_rate(needed * some), candidate.choice.system(some), slo, some)
        if not run.met:
            why = f"at {needed:.2f} requests/s per replica, to beat ${best.whole:.2f}/h: {misses(run)}"
            return _skipped(candidate, "simulation", why, max(candidate.replicas_below(best.whole), 1))
    split = candidate.choice.split
    return find_capacity(trace, candidate.deployment, slo, replicas=replicas, requests=requests, split=split)


def look_at(
    trace: Trace,
    slo: Slo,
    requests: int,
    judge: Callable[[Choice], Candidate | Skipped],
    choice: Choice,
    best: ToBeat,
) -> Outcome:
    """Screen *choice* and, if it may be better than *best*, evaluate it."""
    one = judge(choice)
    if isinstance(one, Skipped):
        return Outcome(one, None)
    if not one.may_beat(best, trace.request_rate):
        return Outcome(one, too_dear(one, trace.request_rate, best), best)
    return Outcome(one, evaluate(trace, one, slo, requests, best), best)


def correct(trace: Trace, plan: Plan, slo: Slo) -> Plan | Skipped:
    """*plan* with the fewest replicas that meet the SLO on the whole *trace*."""
    guess, run = plan.replicas, plan.probe(trace, slo)
    while not run.met:
        plan = plan.ruled_out(f"on the whole trace: {misses(run)}")
        if plan.replicas >= plan.most_replicas:
            return gives_up(plan, run.attained)
        plan = plan.with_replicas(plan.replicas + 1)
        run = plan.probe(trace, slo)
    while 1 < plan.replicas <= guess:
        fewer = plan.with_replicas(plan.replicas - 1)
        less = fewer.probe(trace, slo)
        if not less.met:
            plan = replace(plan, rejected=fewer.ruled_out(f"on the whole trace: {misses(less)}").rejected)
            break
        plan, run = fewer, less
    return replace(plan, run=run)


def gives_up(plan: Plan, attained: tuple[Attained, ...]) -> Skipped:
    """*plan* when more replicas do not help either."""
    last = plan.rejected[-1]
    return _skipped(plan.candidate, "simulation", last.why, last.replicas, attained)


def confirm(asked: Question, system: Deployment | ClusterSpec, replicas: int, pool: Executor) -> Confirmation:
    """Independent runs of *system*, which stands for *replicas*, on fresh traffic, `CONFIRM_FACTOR` times as long where
    the trace allows it."""
    trace, runs = asked.trace, asked.confirm_runs
    wanted = min(CONFIRM_FACTOR * len(trace), max(MOST_CONFIRM_REQUESTS, len(trace)))
    seeds = [1000 + asked.seed * runs + i for i in range(runs)]
    futures = [pool.submit(_fresh, trace, system, asked.slo, replicas, one, wanted) for one in seeds]
    done = tuple(future.result() for future in futures)
    return Confirmation(done, len(resampled(trace, seeds[0], wanted)), asked.level)


def _fresh(
    trace: Trace, system: Deployment | ClusterSpec, slo: Slo, replicas: int, seed: int, requests: int
) -> Probe:
    return probe(resampled(trace, seed, requests), system, slo, replicas)


def too_dear(candidate: Candidate, request_rate: float, best: ToBeat) -> Skipped:
    """Why the analytic bound prunes *candidate*."""
    least = candidate.least_cost(request_rate)
    why = f"costs ${least:.2f}/h at least, the best of its GPU type ${best.whole:.2f}/h"
    why = why if least > best.whole else f"{why} with more to spare"
    return _skipped(candidate, "bound", why, round(least / candidate.usd_per_replica))


def too_many(candidate: Candidate, replicas: int) -> Skipped:
    """*candidate* where it takes more *replicas* than are simulated."""
    return _skipped(candidate, "simulation", f"at most {MOST_REPLICAS} replicas are simulated", replicas)


def hopeless(candidate: Candidate, run: Probe) -> Skipped:
    """*candidate*, which misses the SLO in *run* even with next to nothing to do."""
    why = f"with next to nothing to do: {misses(run)}"
    return _skipped(candidate, "simulation", why, 1, run.attained)


def _skipped(
    candidate: Candidate, stage: str, why: str, replicas: int, attained: tuple[Attained, ...] = ()
) -> Skipped:
    cost = replicas * candidate.usd_per_replica
    return Skipped(candidate.name, stage, why, cost, replicas, candidate.choice, attained)


def misses(run: Probe) -> str:
    """Which objective gives way by most, and by how much."""
    if run.worst.met:
        return f"the queue grows without end, though {run.worst.objective} is still met over this time"
    return run.worst.shortfall


def not_confirmed(confirmation: Confirmation) -> str:
    """Which objective does not hold on fresh traffic."""
    worst = max(confirmation.attained, key=lambda one: one.ratio)
    if worst.met:
        return "on fresh traffic: the queue grows without end"
    return f"on fresh traffic, {confirmation.level:.0%} upper bound: {worst.shortfall}"
