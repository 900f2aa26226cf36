"""Why this plan: what binds it, what a token costs, how firm the answer is and what would change it."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

from hwprofiles import load_profile
from simulator.analytic import SteadyState, Traffic, step_shares
from simulator.sizing.capacity import Probe
from simulator.sizing.cheaper import cheaper
from simulator.sizing.plan import Plan, pareto_front
from simulator.sizing.pool import SerialExecutor
from simulator.sizing.prices import Prices
from simulator.sizing.search import Search, SearchResult
from simulator.sizing.sensitivity import changed, headroom, traffic_changes
from simulator.sizing.slo import finite
from simulator.workload import Trace

__all__ = ["evidence"]

KV_FULL = 0.9
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
    changes = changed(search, best, pool)
    spare = measured.result()
    sensitivity = [*traffic_changes(search, best, spare), *changes]
    return {
        "request": {**_request(search), "looked_at": result.looked_at},
        "best": best.as_dict(),
        "binding": binding(best, search.trace),
        "cost": costs(best, search.trace),
        "energy": energy(best, search.trace),
        "headroom": spare,
        "ranking": [plan.as_dict() for plan in result.ranking],
        "pareto": _paretos(result),
        "sensitivity": sensitivity,
        "would_change": _would_change(result, sensitivity, spare),
        "skipped": [one.as_dict() for one in result.skipped],
        "cheaper": cheaper(best, result.ranking, result.skipped),
        "provenance": _provenance(best, search.prices),
    }


def binding(plan: Plan, trace: Trace) -> dict[str, Any]:
    """What gives way first above the capacity, and where the time of a step goes at it."""
    at = max((one for one in plan.capacity.probes if one.met), key=lambda one: one.request_rate)
    side, shares = _shares(plan, trace, at)
    resource = (
        "kv" if at.kv_usage > KV_FULL or at.preemptions > 0 else max(shares, key=lambda name: shares[name])
    )
    over = plan.capacity.binding
    return {
        "resource": resource,
        "meaning": _WORDS[resource],
        "side": side,
        "time_shares": shares,
        "kv_usage": at.kv_usage,
        "mean_batch": at.mean_batch,
        "objective": None if over is None else str(over.worst.objective),
        "capacity": plan.capacity.request_rate,
        "saturation": plan.capacity.saturation,
        "stability_limit": plan.capacity.bound,
    }


def _shares(plan: Plan, trace: Trace, at: Probe) -> tuple[str | None, dict[str, float]]:
    """(the busier of prefill and decode where they are apart, what a step there is limited by)."""
    resolved, traffic = plan.candidate.deployment.resolve(), Traffic.of_trace(trace)
    split, batch = plan.candidate.choice.split, max(at.mean_batch, 1.0)
    if split is not None:
        side = split.busier(SteadyState(resolved, traffic))
        alone = (0, traffic.prompt) if side == "prefill" else (batch, 0)
        return side, step_shares(resolved, alone[0], traffic.context, alone[1])
    rounds = at.output_tokens_per_s / batch  # each decoding request gets one token per step
    prefill = at.request_rate * traffic.prompt / rounds if rounds else 0.0
    return None, step_shares(resolved, batch, traffic.context, prefill)


def costs(plan: Plan, trace: Trace) -> dict[str, float]:
    """$ per million tokens at the traffic asked for: all, and split between input and output by the time that prefill
    adds to the steps, or by the replicas of each side where they are apart."""
    split, per_second = plan.candidate.choice.split, plan.usd_per_hour / 3600  # s per h
    if split is not None:
        prompts, outputs, rate = (
            float(trace.input_length.mean()),
            float(trace.output_length.mean()),
            trace.request_rate,
        )
        share = split.prefill / split.replicas
        return {
            "input": 1e6 * per_second * share / (rate * prompts),
            "output": 1e6 * per_second * (1 - share) / (rate * max(outputs, 1.0)),
            "all": 1e6 * per_second / (rate * (prompts + outputs)),
        }
    resolved = plan.candidate.deployment.resolve()
    state = SteadyState(resolved, Traffic.of_trace(trace, trace.request_rate / plan.replicas))
    return state.cost_per_million(plan.candidate.usd_per_gpu_hour)


def energy(plan: Plan, trace: Trace) -> dict[str, float] | None:
    """J per token at most: every GPU at its thermal design power all the time; None where that is not known. Host and
    cooling are not in it."""
    power = load_profile(plan.candidate.deployment.gpu).tdp_watts
    if power is None:
        return None
    watts, rate = power * plan.num_gpus, trace.request_rate
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
        "search": search.chosen_method,
        "choices": len(search.space),
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
    resolved, split = plan.candidate.deployment.resolve(), plan.candidate.choice.split
    device = resolved.profile.device_name
    lines = [
        *resolved.provenance,
        f"price of {device}: {prices.of(device).text}",
    ]
    if split is not None:
        lines.append(
            f"KV travels at {split.bandwidth / 1e9:g} GB/s from each prefill replica; its price is not counted"
        )
    if plan.candidate.deployment.dtype is not None:
        lines.append(
            f"weights in {plan.candidate.deployment.dtype}: what that does to the answers is not simulated"
        )
    return [
        *lines,
        "fresh traffic: moving-block bootstrap of the trace; it knows nothing that the trace does not",
    ]
