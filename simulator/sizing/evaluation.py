"""What is tried with one choice: a first run, its capacity, all its replicas, and fresh traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from simulator.sizing.candidates import Candidate, Choice, Skipped, ToBeat
from simulator.sizing.capacity import Capacity, Probe, find_capacity, probe
from simulator.sizing.plan import Confirmation, Plan
from simulator.sizing.sampled import Outcome
from simulator.sizing.slo import Attained, Slo
from simulator.sizing.traffic import part_of, resampled
from simulator.workload import Trace

__all__ = ["confirm", "correct", "evaluate", "look_at", "misses", "too_dear"]

TYPICAL = 0.6
"""Share of the analytic bound that a percentile SLO leaves, for the first guess of the number of replicas."""
CONFIRM_FACTOR = 2
MOST_CONFIRM_REQUESTS = 60_000


def evaluate(trace: Trace, candidate: Candidate, slo: Slo, requests: int, best: ToBeat) -> Capacity | Skipped:
    """The capacity of *candidate*, or why it cannot be better than *best*."""
    rate = trace.request_rate
    replicas = max(math.ceil(rate / (TYPICAL * candidate.bound)), 1)
    needed = candidate.rate_to_beat(best, rate)
    if needed == math.inf:
        return Skipped(candidate.name, "bound", f"one replica costs more than ${best.whole:.2f}/h")
    if needed > 0:
        replicas = math.ceil(rate / needed)
        part, some = part_of(trace, replicas, requests)
        run = probe(part.with_request_rate(needed * some), candidate.choice.system(some), slo, some)
        if not run.met:
            why = f"at the {needed:.2f} requests/s that would be cheaper than ${best.whole:.2f}/h: {misses(run.worst)}"
            return Skipped(candidate.name, "simulation", why)
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
        return Outcome(one, too_dear(one, trace.request_rate, best))
    return Outcome(one, evaluate(trace, one, slo, requests, best))


def correct(trace: Trace, plan: Plan, slo: Slo) -> Plan | Skipped:
    """*plan* with the fewest replicas that meet the SLO on the whole *trace*."""
    guess, run = plan.replicas, plan.probe(trace, slo)
    while not run.met:
        if plan.replicas >= 2 * plan.request_rate / plan.capacity.request_rate + 2:
            return Skipped(
                plan.candidate.name, "simulation", f"{plan.replicas} replicas do not do: {misses(run.worst)}"
            )
        plan = plan.with_replicas(plan.replicas + 1)
        run = plan.probe(trace, slo)
    while 1 < plan.replicas <= guess:
        fewer = plan.with_replicas(plan.replicas - 1)
        less = fewer.probe(trace, slo)
        if not less.met:
            break
        plan, run = fewer, less
    return replace(plan, run=run)


def confirm(
    trace: Trace, plan: Plan, slo: Slo, pool: Executor, *, runs: int, level: float, seed: int
) -> Confirmation:
    """Independent *runs* of *plan* on fresh traffic, `CONFIRM_FACTOR` times as long where the trace allows it."""
    wanted = min(CONFIRM_FACTOR * len(trace), max(MOST_CONFIRM_REQUESTS, len(trace)))
    seeds = [1000 + seed * runs + i for i in range(runs)]
    futures = [pool.submit(_fresh, trace, plan, slo, one, wanted) for one in seeds]
    done = tuple(future.result() for future in futures)
    return Confirmation(done, len(resampled(trace, seeds[0], wanted)), level)


def _fresh(trace: Trace, plan: Plan, slo: Slo, seed: int, requests: int) -> Probe:
    return plan.probe(resampled(trace, seed, requests), slo)


def too_dear(candidate: Candidate, request_rate: float, best: ToBeat) -> Skipped:
    """Why the analytic bound prunes *candidate*."""
    least = candidate.least_cost(request_rate)
    why = f"costs ${least:.2f}/h at least, the best of its GPU type ${best.whole:.2f}/h"
    return Skipped(candidate.name, "bound", why if least > best.whole else f"{why} with more to spare")


def misses(worst: Attained) -> str:
    """Which objective gives way, and by how much."""
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
