"""What every replica cost: GPU-hours from the moment its machine was there until it was gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cluster.pool import Member

__all__ = ["ReplicaBill", "bills", "gpus_over_time", "total_usd"]

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class ReplicaBill:
    """One replica. Times in s; ``ready`` is NaN for one that never served, ``stop`` for one that ran to the end."""

    replica: int
    pool: str
    gpu: str
    gpus: float
    """GPUs that it occupies: a part of one where it shares."""
    start: float
    ready: float
    stop: float
    state: str
    gpu_hours: float
    usd: float | None
    """None where the GPU has no price."""


def bills(members: Sequence[Member], end: float) -> list[ReplicaBill]:
    """One per replica that was ever started, up to *end* (s)."""
    return [_bill(member, end) for member in members]


def _bill(member: Member, end: float) -> ReplicaBill:
    pool, stop = member.pool, end if math.isnan(member.stop_time) else min(member.stop_time, end)
    gpus = pool.num_gpus * pool.share
    hours = gpus * max(stop - member.start_time, 0.0) / SECONDS_PER_HOUR
    usd = None if pool.usd_per_hour is None else hours * pool.usd_per_hour
    return ReplicaBill(
        member.index,
        pool.name,
        pool.gpu,
        gpus,
        member.start_time,
        member.ready_time,
        member.stop_time,
        member.state.value,
        hours,
        usd,
    )


def total_usd(lines: Sequence[ReplicaBill]) -> float | None:
    """None where a price is missing."""
    known = [line.usd for line in lines if line.usd is not None]
    return math.fsum(known) if len(known) == len(lines) else None


def gpus_over_time(lines: Sequence[ReplicaBill], end: float) -> tuple[np.ndarray, np.ndarray]:
    """(s, GPUs from then on): how many are paid for, up to *end* (s)."""
    changes: dict[float, float] = {0.0: 0.0}
    for line in lines:
        stop = end if math.isnan(line.stop) else line.stop
        if line.start < stop:
            changes[line.start] = changes.get(line.start, 0.0) + line.gpus
            changes[stop] = changes.get(stop, 0.0) - line.gpus
    times = sorted(changes)
    return np.array(times), np.cumsum([changes[t] for t in times]).round(9)
