"""How many replicas a pool has: scaled on a signal, as Kubernetes does it, or moved between prefill and decode.

Every *interval* the mean of a signal over the replicas is compared with its *target*: the pool should have
``ceil(replicas · value / target)`` of them, unless the ratio is within *tolerance* of 1 (Kubernetes, Horizontal
Pod Autoscaling, algorithm details). Replicas that are starting count as replicas that have nothing to do. A pool
shrinks to the highest number asked for within *scale_down_delay*, the number it began with among them, the youngest
replica first, each after it has finished what it has. The limits on the speed of growth that Kubernetes has by default
(twice as many, or four more, in 15 s) are not modelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from typing import Literal

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.cluster.fleet import Fleet
from simulator.cluster.pool import Member, Pool, State

__all__ = ["AutoscaleSpec", "RatioSpec", "autoscale", "balance"]

PROVISIONED = (State.READY, State.STARTING)


class AutoscaleSpec(BaseModel):
    """*signal*: ``queue`` (waiting requests per replica), ``kv`` (share of the KV cache in use), ``ttft`` (ms, the
    *percentile* of the requests that left within *window* s).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    signal: Literal["queue", "kv", "ttft"]
    target: float = Field(gt=0)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(ge=1)
    interval: float = Field(default=15.0, gt=0)
    """s; 15 and the next two are Kubernetes' defaults."""
    tolerance: float = Field(default=0.1, ge=0)
    scale_down_delay: float = Field(default=300.0, ge=0)
    percentile: float = Field(default=90.0, ge=0, le=100)
    window: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> AutoscaleSpec:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas}: must be at least min_replicas {self.min_replicas}"
            )
        return self


class RatioSpec(BaseModel):
    """Prefill and decode replicas change sides where, per replica, *imbalance* more requests wait on one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval: float = Field(default=15.0, gt=0)
    imbalance: float = Field(default=4.0, gt=0)
    switch: float = Field(default=0.0, ge=0)
    """s from the end of what a replica had to its first request on the other side; weights stay loaded."""


def autoscale(fleet: Fleet, pool: Pool, spec: AutoscaleSpec) -> Generator[simpy.Event, None, None]:
    """The process that scales *pool*."""
    asked = deque([(fleet.env.now, len(fleet.of(pool, *PROVISIONED)))])  # recordInitialRecommendation
    pool.autoscaled = True
    while not fleet.over:
        yield fleet.env.timeout(spec.interval)
        now, members = fleet.env.now, [m for m in fleet.of(pool, *PROVISIONED) if not m.cut_off]
        wanted = _wanted(fleet, pool, members, spec)
        asked.append((now, wanted))
        while asked[0][0] < now - spec.scale_down_delay:
            asked.popleft()
        for _ in range(wanted - len(members)):
            fleet.start(pool)
        least = max(number for _, number in asked)
        for member in members[least:][::-1]:
            fleet.drain(member)


def _wanted(fleet: Fleet, pool: Pool, members: list[Member], spec: AutoscaleSpec) -> int:
    ready = [m for m in members if m.state is State.READY]
    number = len(members)
    if ready:
        needed = _signal(fleet, pool, ready, spec) / spec.target
        if spec.signal == "ttft":
            ratio = needed if len(ready) == number else min(needed, 1.0)  # help may be on its way
            needed = number * ratio
        if abs(needed / number - 1) > spec.tolerance:
            number = math.ceil(needed)
    return min(max(number, spec.min_replicas), spec.max_replicas)


def _signal(fleet: Fleet, pool: Pool, ready: list[Member], spec: AutoscaleSpec) -> float:
    """Summed over the replicas; ``ttft`` is one number for all."""
    if spec.signal == "kv":
        return sum(member.kv_usage for member in ready)
    if spec.signal == "queue":
        return fleet.queued(pool) + sum(member.num_waiting for member in ready)
    since, times, records = fleet.env.now - spec.window, [], fleet.records
    for when, i in reversed(fleet.departures):
        if when < since:
            break
        times.append(records.first_token_time[i] - records.arrival_time[i])
    known = [seconds for seconds in times if seconds == seconds]
    return float(np.percentile(known, spec.percentile)) * 1000 if known else 0.0  # s -> ms


def balance(fleet: Fleet, prefill: Pool, decode: Pool, spec: RatioSpec) -> Generator[simpy.Event, None, None]:
    """The process that moves replicas between *prefill* and *decode*."""
    while not fleet.over:
        yield fleet.env.timeout(spec.interval)
        there = {pool: fleet.of(pool, State.READY) for pool in (prefill, decode)}
        if any(fleet.of(pool, State.STARTING, State.DRAINING) for pool in there) or not all(there.values()):
            continue  # one move at a time
        waiting = {
            pool: (fleet.queued(pool) + sum(m.num_waiting for m in members)) / len(members)
            for pool, members in there.items()
        }
        short, spare = sorted(there, key=lambda pool: -waiting[pool])
        if waiting[short] - waiting[spare] > spec.imbalance and len(there[spare]) > 1:
            fleet.convert(there[spare][-1], short, spec.switch)
