"""A trace through a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.cluster.autoscaler import autoscale, balance
from simulator.cluster.bill import bills
from simulator.cluster.cluster import Cluster
from simulator.cluster.failures import FailureSpec, install_failures
from simulator.cluster.fleet import Fleet
from simulator.cluster.gathered import gather
from simulator.cluster.handover import LinkSpec
from simulator.cluster.pool import Member, Pool
from simulator.cluster.resolve import ResolvedPool, resolve_pools
from simulator.cluster.result import ClusterResult
from simulator.cluster.routers import STATIC
from simulator.cluster.spec import ClusterSpec
from simulator.errors import ConfigurationError
from simulator.results import RecordsBuilder
from simulator.results.classes import class_table
from simulator.steptime import StepTime
from simulator.workload import Trace
from simulator.workload.limits import resolve_max_tokens

__all__ = ["simulate_cluster"]

PROGRESS_STEPS = 200


def simulate_cluster(
    trace: Trace,
    spec: ClusterSpec,
    *,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (50, 90, 95, 99),
    progress: Callable[[float], None] | None = None,
    stepped: bool = False,
    until: float | None = None,
    seed: int = 0,
    steptimes: Mapping[str, StepTime] | None = None,
) -> ClusterResult:
    """Replay *trace* against the cluster *spec*; the options are those of `simulator.simulate`, and *steptimes* by
    pool in place of the predicted ones. Raises `SimError`."""
    if until is not None and not until > 0:
        raise ConfigurationError(f"until {until}: must be above 0")
    pools = resolve_pools(spec, seed)
    for p in pools:
        p.pool.steptime = (steptimes or {}).get(p.pool.name, p.pool.steptime)
    limits = resolve_max_tokens(trace, _default_max_tokens(trace, pools))
    front_end = _front_end(pools)
    if _is_plain(spec, trace):
        run = _run_apart(trace, limits, spec, pools[0].pool, until, stepped, seed, front_end)
    else:
        run = _run_fleet(trace, limits, spec, pools, until, stepped, seed, front_end, progress)
    if progress is not None:
        progress(1.0)
    replicas = [member.replica for member in run.members if not math.isnan(member.ready_time)]
    done = gather(
        trace,
        run.records,
        replicas,
        goodput=goodput,
        percentiles=percentiles,
        until=until,
        injected=run.injected,
        front_end=front_end,
    )
    return ClusterResult(
        trace=trace,
        spec=spec,
        pools=pools,
        records=done.records,
        series=done.series,
        itl=done.itl,
        summary=done.summary,
        num_iterations=done.num_iterations,
        end_time=run.end_time,
        classes=class_table(done.records, done.summary.sample.duration, spec.slo, goodput or {}),
        bills=bills(run.members, run.end_time),
        num_retries=run.num_retries,
        bytes_transferred=run.bytes_sent,
        mean_transfer_s=float(np.mean(run.transfer_seconds)) if run.transfer_seconds else math.nan,
    )


@dataclass
class _Outcome:
    """What a run leaves, whichever way it was done."""

    records: RecordsBuilder
    members: Sequence[Member]
    end_time: float
    injected: int | None = None
    num_retries: int = 0
    bytes_sent: float = 0.0
    transfer_seconds: Sequence[float] = ()


def _is_plain(spec: ClusterSpec, trace: Trace) -> bool:
    """Whether every replica can be given its own arrivals beforehand: the fast way, with the same result."""
    pool = next(iter(spec.pools.values()))
    front = spec.admission is None and spec.failures is None and spec.router in STATIC
    alone = len(spec.pools) == 1 and pool.autoscale is None and pool.partition is None and pool.serves is None
    closed = trace.max_concurrency is not None or bool(np.isnan(trace.arrival_time).any())
    return front and alone and not closed


def _run_apart(
    trace: Trace,
    limits: Any,
    spec: ClusterSpec,
    pool: Pool,
    until: float | None,
    stepped: bool,
    seed: int,
    front_end: float,
) -> _Outcome:
    env = simpy.Environment()
    cluster = Cluster(
        env,
        trace,
        limits,
        pool.make_scheduler,
        pool.steptime,
        num_replicas=pool.replicas,
        router=spec.router,
        seed=seed,
        stepped=stepped,
        horizon=math.inf if until is None else until,
        front_end=front_end,
    )
    env.run(until)
    members = [Member(i, i, pool, 0.0) for i in range(pool.replicas)]
    for member, replica in zip(members, cluster.replicas, strict=True):
        member.serve(replica, 0.0)
    return _Outcome(cluster.records, members, env.now, None if until is not None else len(trace))


def _run_fleet(
    trace: Trace,
    limits: Any,
    spec: ClusterSpec,
    pools: Sequence[ResolvedPool],
    until: float | None,
    stepped: bool,
    seed: int,
    front_end: float,
    progress: Callable[[float], None] | None,
) -> _Outcome:
    env = simpy.Environment()
    fleet = _fleet(env, trace, limits, spec, pools, stepped, seed, front_end)
    if progress is not None:
        env.process(_report(fleet, progress))
    env.run(fleet.finished if until is None else fleet.finished | env.timeout(until))
    return _Outcome(
        fleet.records,
        fleet.members,
        env.now,
        fleet.injected,
        sum(fleet.retries),
        fleet.handover.bytes_sent if fleet.handover else 0.0,
        fleet.handover.seconds if fleet.handover else (),
    )


def _fleet(
    env: simpy.Environment,
    trace: Trace,
    limits: Any,
    spec: ClusterSpec,
    pools: Sequence[ResolvedPool],
    stepped: bool,
    seed: int,
    front_end: float,
) -> Fleet:
    link, failures = spec.transfer, spec.failures or FailureSpec()
    fleet = Fleet(
        env,
        trace,
        limits,
        [p.pool for p in pools],
        router=spec.router,
        staleness=spec.staleness,
        imbalance=spec.imbalance,
        admission=spec.admission,
        link=None if link is None else LinkSpec(link.bandwidth, link.latency, link.sharing, link.shared),
        max_retries=failures.max_retries if failures.on_death == "retry" else 0,
        seed=seed,
        stepped=stepped,
        front_end=front_end,
    )
    scaled = spec.ratio is not None or any(p.spec.autoscale is not None for p in pools)
    install_failures(fleet, failures, may_grow=scaled or failures.repair is not None)
    for p in pools:
        if p.spec.autoscale is not None:
            env.process(autoscale(fleet, p.pool, p.spec.autoscale))
    if spec.ratio is not None:
        prefill, decode = (
            next(p.pool for p in pools if p.pool.role == role) for role in ("prefill", "decode")
        )
        env.process(balance(fleet, prefill, decode, spec.ratio))
    return fleet


def _default_max_tokens(trace: Trace, pools: Sequence[ResolvedPool]) -> int | str:
    """A request's limit is the client's, so it cannot depend on where the request goes."""
    rules = {p.pool.name: p.resolved.default_max_tokens for p in pools}
    if len(set(rules.values())) > 1 and bool((trace.max_tokens == 0).any()):
        listed = ", ".join(f"{name} {rule}" for name, rule in rules.items())
        raise ConfigurationError(f"default_max_tokens: must be the same in all pools, not {listed}")
    return next(iter(rules.values()))


def _front_end(pools: Sequence[ResolvedPool]) -> float:
    """Seconds before the router has a request, so they cannot depend on where it goes."""
    found = {p.pool.name: p.resolved.front_end_s for p in pools}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {1e3 * seconds:g}" for name, seconds in found.items())
        raise ConfigurationError(f"request_overhead_ms: must be the same in all pools, not {listed}")
    return next(iter(found.values()))


def _report(fleet: Fleet, progress: Callable[[float], None]) -> Any:
    """Tell how far the run is, at a few hundred moments of the simulated clock."""
    span = max(fleet.trace.duration, 1.0) / PROGRESS_STEPS
    while not fleet.over:
        yield fleet.env.timeout(span)
        progress(fleet.num_left / len(fleet.trace))
