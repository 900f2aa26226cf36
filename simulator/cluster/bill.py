"""What every replica cost: GPU-hours from the moment its machine was there until it was gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cluster.pool import Member
from simulator.results.report import Table

__all__ = ["ReplicaBill", "bill_section", "bills", "gpus_over_time", "total_usd"]

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


def bill_section(lines: Sequence[ReplicaBill], end: float) -> Table:
    """The bill for a report, by pool, with the sum."""
    names = dict.fromkeys(line.pool for line in lines)
    rows = [_pool_row(name, [line for line in lines if line.pool == name], end) for name in names]
    if len(rows) > 1:
        rows.append(("all", "", *_pool_row("", lines, end)[2:]))
    columns = (
        "pool",
        "GPU",
        "replicas started",
        "died",
        "GPUs at most",
        "GPUs on average",
        "GPU-hours",
        "$",
        "$/h",
    )
    note = (
        "A replica costs from the moment its machine is there until it is gone. Empty: no price for the GPU."
    )
    return Table("What it cost", columns, rows, note)


def _pool_row(name: str, lines: Sequence[ReplicaBill], end: float) -> tuple[str, ...]:
    hours, usd = math.fsum(line.gpu_hours for line in lines), total_usd(lines)
    length = end / SECONDS_PER_HOUR
    return (
        name,
        lines[0].gpu,
        f"{len(lines):,}",
        f"{sum(line.state == 'dead' for line in lines):,}",
        f"{float(gpus_over_time(lines, end)[1].max()):g}",
        f"{hours / length:.2f}" if length else "",
        f"{hours:,.3f}",
        "" if usd is None else f"${usd:,.2f}",
        "" if usd is None or not length else f"${usd / length:,.2f}",
    )
