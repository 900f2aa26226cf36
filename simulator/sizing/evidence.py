"""Why this plan: what binds it, what a token costs, how firm the answer is and what would change it."""

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

from hwprofiles import load_profile
from simulator.analytic import SteadyState, Traffic, step_shares
from simulator.errors import SimError
from simulator.sizing.capacity import find_capacity, probe
from simulator.sizing.plan import Plan, pareto_front
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.prices import Prices
from simulator.sizing.search import Search, SearchResult
from simulator.sizing.slo import Slo, finite
from simulator.workload import Trace

__all__ = ["evidence"]

KV_FULL = 0.9
LONGER_PROMPTS = 1.5
TRAFFIC_CHANGES = (0.8, 1.2)
HEADROOM_STEP = 1.1
HEADROOM_TOLERANCE = 0.02
SMALL_HEADROOM = 0.2
_WORDS = {
    "compute": "FLOPs of the matrix products and attention",
    "bandwidth": "memory bandwidth: reading weights and KV",
    "interconnect": "communication between the GPUs of a replica",
    "host": "the CPU that schedules and launches",
    "kv": "room in the KV cache",
}


def evidence(result: SearchResult, executor: Executor | None = None) -> dict[str, Any]:
    """Everything that a report says about *result*, as plain values in SI units and dollars."""
    search, best = result.search, result.best
    pool = executor or SerialExecutor()
    measured = pool.submit(headroom, search.trace, best, search.slo)
    changes = _changed(search, best, pool)
    spare = measured.result()
    sensitivity = [*(_traffic_row(search, best, spare, factor) for factor in TRAFFIC_CHANGES), *changes]
    return {
        "request": _request(search),
        "best": best.as_dict(),
        "binding": binding(best, search.trace),
        "cost": costs(best, search.trace),
        "energy": energy(best, search.trace),
        "headroom": spare,
        "ranking": [plan.as_dict() for plan in result.ranking],
        "pareto": _paretos(result),
        "sensitivity": sensitivity,
        "would_change": _would_change(result, sensitivity, spare),
        "skipped": [vars(one) for one in result.skipped],
        "provenance": _provenance(best, search.prices),
    }


def binding(plan: Plan, trace: Trace) -> dict[str, Any]:
    """What gives way first above the capacity, and where the time of a step goes at it."""
    resolved = plan.candidate.deployment.resolve()
    traffic = Traffic.of_trace(trace)
    at = max((one for one in plan.capacity.probes if one.met), key=lambda one: one.request_rate)
    batch = max(at.mean_batch, 1.0)
    rounds = at.output_tokens_per_s / batch  # each decoding request gets one token per step
    prefill = at.request_rate * traffic.prompt / rounds if rounds else 0.0
    shares = step_shares(resolved, batch, traffic.context, prefill)
    resource = (
        "kv" if at.kv_usage > KV_FULL or at.preemptions > 0 else max(shares, key=lambda name: shares[name])
    )
    over = plan.capacity.binding
    return {
        "resource": resource,
        "meaning": _WORDS[resource],
        "time_shares": shares,
        "kv_usage": at.kv_usage,
        "mean_batch": at.mean_batch,
        "objective": None if over is None else str(over.worst.objective),
        "capacity": plan.capacity.request_rate,
        "saturation": plan.capacity.saturation,
        "stability_limit": plan.capacity.bound,
    }


def costs(plan: Plan, trace: Trace) -> dict[str, float]:
    """$ per million tokens at the traffic asked for: all, and split between input and output by the time that prefill
    adds to the steps."""
    resolved = plan.candidate.deployment.resolve()
    state = SteadyState(resolved, Traffic.of_trace(trace, trace.request_rate / plan.replicas))
    return state.cost_per_million(plan.candidate.usd_per_gpu_hour)


def energy(plan: Plan, trace: Trace) -> dict[str, float]:
    """J per token at most: every GPU at its thermal design power all the time. Host and cooling are not in it."""
    watts = load_profile(plan.candidate.deployment.gpu).tdp_watts * plan.num_gpus
    rate = trace.request_rate
    prompts, outputs = float(trace.input_length.mean()), float(trace.output_length.mean())
    return {
        "watts_at_most": watts,
        "joule_per_output_token_at_most": watts / (rate * max(outputs, 1.0)),
        "joule_per_token_at_most": watts / (rate * (prompts + outputs)),
    }


def _request(search: Search) -> dict[str, Any]:
    trace = search.trace
    return {
        "model": search.space.base.model,
        "slo": [str(one) for one in search.slo.objectives],
        "slo_source": search.slo.source,
        "requests": len(trace),
        "request_rate": trace.request_rate,
        "mean_input_length": float(trace.input_length.mean()),
        "mean_output_length": float(trace.output_length.mean()),
        "gpus": list(search.space.gpus),
        "systems": list(search.space.systems),
        "max_cost": finite(search.max_cost),
        "seed": search.seed,
    }


def _paretos(result: SearchResult) -> dict[str, Any]:
    """Cost against the tightest objective; tokens/s/GPU against tokens/s/user over all probes that keep up."""
    plans = [plan for plan in result.ranking if plan.run is not None]
    points: list[dict[str, Any]] = [
        {
            "name": plan.candidate.name,
            "replicas": plan.replicas,
            "usd_per_hour": plan.usd_per_hour,
            "worst_ratio": plan.run.worst.ratio,
            **{str(one.objective): finite(one.value) for one in plan.run.attained},
        }
        for plan in plans
        if plan.run is not None
    ]
    speeds: list[dict[str, Any]] = [
        {
            "name": plan.candidate.name,
            "tokens_per_s_per_gpu": one.output_tokens_per_s / plan.candidate.num_gpus,
            "tokens_per_s_per_user": 1 / one.tpot_s,
            "request_rate": one.request_rate,
            "met": one.met,
        }
        for plan in result.ranking
        for one in plan.capacity.probes
        if not one.overloaded and one.tpot_s > 0
    ]
    front = pareto_front(speeds, lambda p: -p["tokens_per_s_per_gpu"], lambda p: p["tokens_per_s_per_user"])
    cheap = pareto_front(points, lambda p: p["usd_per_hour"], lambda p: -p["worst_ratio"])
    return {
        "cost_latency": points,
        "cost_latency_front": cheap,
        "throughput_speed": speeds,
        "throughput_speed_front": front,
    }


def headroom(trace: Trace, plan: Plan, slo: Slo) -> float:
    """How much more traffic all replicas take together, by simulating the whole *trace* faster; 0.1: 10 % more."""

    def holds(factor: float) -> bool:
        return probe(trace.with_request_rate(factor * trace.request_rate), plan.deployment, slo).met

    low, high = 1.0, HEADROOM_STEP
    while holds(high):
        low, high = high, HEADROOM_STEP * high
    while high - low > HEADROOM_TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low - 1


def _changed(search: Search, best: Plan, pool: Executor) -> list[dict[str, Any]]:
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


def _traffic_row(search: Search, best: Plan, spare: float, factor: float) -> dict[str, Any]:
    per_replica = search.request_rate * (1 + spare) / best.replicas
    replicas = math.ceil(factor * search.request_rate / per_replica)
    cost = replicas * best.candidate.usd_per_replica
    return {"change": f"traffic {100 * (factor - 1):+.0f} %", "replicas": replicas, "usd_per_hour": cost}


def _resized(search: Search, trace: Trace, plan: Plan) -> dict[str, Any]:
    try:
        capacity = find_capacity(
            trace, plan.candidate.deployment, search.slo, replicas=plan.replicas, requests=search.requests
        )
    except SimError as error:
        return {"problem": " ".join(str(error).split())}
    if capacity.request_rate == 0:
        worst = capacity.unloaded.worst
        return {"problem": f"no number of replicas meets {worst.objective}: {worst.value:.4g} at best"}
    replicas = math.ceil(search.request_rate / capacity.request_rate)
    return {"replicas": replicas, "usd_per_hour": replicas * plan.candidate.usd_per_replica}


def _on(plan: Plan, gpu: str, prices: Prices) -> Plan:
    candidate = replace(
        plan.candidate,
        deployment=plan.candidate.deployment.model_copy(update={"gpu": gpu}),
        usd_per_gpu_hour=prices.of(gpu).usd_per_hour,
    )
    return replace(plan, candidate=candidate, run=None, confirmation=None)


@cache
def _successors() -> Mapping[str, str]:
    text = files("simulator.sizing").joinpath("data/generations.yaml").read_text(encoding="utf-8")
    found: Mapping[str, str] = yaml.safe_load(text)
    return found


def _would_change(result: SearchResult, sensitivity: list[dict[str, Any]], spare: float) -> list[str]:
    """The nearest things that make another plan the better one, one line each."""
    best, lines = result.best, []
    if spare < SMALL_HEADROOM:
        lines.append(f"traffic more than {100 * spare:.0f} % higher: another replica is needed")
    seen = {best.candidate.deployment.gpu}
    for plan in result.ranking:
        gpu = plan.candidate.deployment.gpu
        if gpu in seen:
            continue
        seen.add(gpu)
        even = best.usd_per_hour / plan.num_gpus
        lines.append(
            f"{gpu} below ${even:.2f} per GPU and hour (now ${plan.candidate.usd_per_gpu_hour:.2f}): "
            f"{plan.num_gpus} of them would be cheaper"
        )
    for row in sensitivity:
        if row["change"].startswith("a GPU") and row.get("usd_per_hour", math.inf) < best.usd_per_hour:
            lines.append(
                f"{row['change']}: ${row['usd_per_hour']:.2f}/h instead of ${best.usd_per_hour:.2f}/h"
            )
    return lines


def _provenance(plan: Plan, prices: Prices) -> list[str]:
    resolved = plan.deployment.resolve()
    lines = [
        *resolved.provenance,
        f"price of {resolved.profile.name}: {prices.of(resolved.profile.name).text}",
    ]
    if plan.candidate.deployment.dtype is not None:
        lines.append(
            f"weights in {plan.candidate.deployment.dtype}: what that does to the answers is not simulated"
        )
    return [
        *lines,
        "fresh traffic: moving-block bootstrap of the trace; it knows nothing that the trace does not",
    ]
