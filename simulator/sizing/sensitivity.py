"""How firm a plan is: what more traffic it takes, and what it would be if traffic, prompts or GPUs were different."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from simulator.errors import SimError
from simulator.sizing.capacity import find_capacity
from simulator.sizing.plan import Plan
from simulator.sizing.prices import Prices
from simulator.sizing.search import Search
from simulator.sizing.slo import Slo
from simulator.workload import Trace

__all__ = ["changed", "headroom", "traffic_changes"]

LONGER_PROMPTS = 1.5
TRAFFIC_CHANGES = (0.8, 1.2)
HEADROOM_STEP = 1.1
HEADROOM_TOLERANCE = 0.02


def headroom(trace: Trace, plan: Plan, slo: Slo) -> float:
    """How much more traffic all replicas take together, by simulating the whole *trace* faster; 0.1: 10 % more."""

    def holds(factor: float) -> bool:
        return plan.probe(trace.with_request_rate(factor * trace.request_rate), slo).met

    low, high = 1.0, HEADROOM_STEP
    while holds(high):
        low, high = high, HEADROOM_STEP * high
    while high - low > HEADROOM_TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low - 1


def changed(search: Search, best: Plan, pool: Executor) -> list[dict[str, Any]]:
    """The number of replicas and the cost if the prompts or the GPU were different."""
    longer = search.trace.replace(
        input_length=np.rint(search.trace.input_length * LONGER_PROMPTS).astype(np.int64)
    )
    cases: list[tuple[str, Trace, Plan]] = [(f"prompts {LONGER_PROMPTS:g} times as long", longer, best)]
    successor = _successors().get(best.candidate.deployment.gpu)
    if successor is not None and successor in search.prices:
        cases.append(
            (f"a GPU generation later: {successor}", search.trace, _on(best, successor, search.prices))
        )
    futures = [pool.submit(_resized, search, trace, plan) for _, trace, plan in cases]
    rows: list[dict[str, Any]] = []
    for (name, _, _), future in zip(cases, futures):
        rows.append({"change": name, **future.result()})
    if successor is not None and successor not in search.prices:
        rows.append(
            {"change": f"a GPU generation later: {successor}", "problem": "no price; give one with --prices"}
        )
    return rows


def traffic_changes(search: Search, best: Plan, spare: float) -> list[dict[str, Any]]:
    """The same for less and more traffic, from the headroom *spare*."""
    per_replica = search.request_rate * (1 + spare) / best.replicas
    rows: list[dict[str, Any]] = []
    for factor in TRAFFIC_CHANGES:
        replicas = math.ceil(factor * search.request_rate / per_replica)
        cost = replicas * best.candidate.usd_per_replica
        rows.append(
            {"change": f"traffic {100 * (factor - 1):+.0f} %", "replicas": replicas, "usd_per_hour": cost}
        )
    return rows


def _resized(search: Search, trace: Trace, plan: Plan) -> dict[str, Any]:
    try:
        candidate = plan.candidate
        capacity = find_capacity(
            trace,
            candidate.deployment,
            search.slo,
            replicas=plan.replicas,
            requests=search.requests,
            split=candidate.choice.split,
        )
    except SimError as error:
        return {"problem": " ".join(str(error).split())}
    if capacity.request_rate == 0:
        worst = capacity.unloaded.worst
        return {"problem": f"no number of replicas meets {worst.objective}: {worst.value:.4g} at best"}
    replicas = math.ceil(search.request_rate / capacity.request_rate)
    return {"replicas": replicas, "usd_per_hour": replicas * plan.candidate.usd_per_replica}


def _on(plan: Plan, gpu: str, prices: Prices) -> Plan:
    choice = plan.candidate.choice
    choice = replace(choice, deployment=choice.deployment.model_copy(update={"gpu": gpu}))
    candidate = replace(plan.candidate, choice=choice, usd_per_gpu_hour=prices.of(gpu).usd_per_hour)
    return replace(plan, candidate=candidate, run=None, confirmation=None)


@cache
def _successors() -> Mapping[str, str]:
    text = files("simulator.sizing").joinpath("data/generations.yaml").read_text(encoding="utf-8")
    found: Mapping[str, str] = yaml.safe_load(text)
    return found
