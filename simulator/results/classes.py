"""How each SLO class, tenant and model fared.

Attainment counts every request that arrived: one that was rejected, lost or has not finished met nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.results.goodput import meets
from simulator.results.records import FINISHED, Categories, Records
from simulator.results.report import Table

__all__ = ["ClassRow", "class_section", "class_table"]


@dataclass(frozen=True)
class ClassRow:
    """Requests of one class; latencies in ms, NaN where nothing finished."""

    kind: str
    """``slo_class``, ``tenant``, ``model`` or ``all``."""
    name: str
    requests: int
    finished: int
    mean_ttft_ms: float
    p99_ttft_ms: float
    mean_tpot_ms: float
    p99_tpot_ms: float
    attainment: float | None
    """Share of the requests that met their objectives; None where there are none."""
    goodput: float | None
    """The same, requests/s."""

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it: NaN is null."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(self).items()
        }


def class_table(
    records: Records,
    duration: float,
    slo: Mapping[str, Mapping[str, float]],
    default: Mapping[str, float],
) -> list[ClassRow]:
    """One row for all, and one for each class, tenant and model that the trace names.

    *slo*: objectives (ms) by SLO class; *default*: those of the other requests. *duration* in s.
    """
    good, has = _good(records, slo, default)
    everyone = records.status >= 0
    rows = [_row("all", "all", everyone, records, good, has, duration)]
    for kind in ("slo_class", "tenant", "model"):
        column: Categories | None = getattr(records, kind)
        for code, name in enumerate(column.names if column is not None else ()):
            assert column is not None
            mine = everyone & (np.asarray(column.codes) == code)
            if mine.any():
                rows.append(_row(kind, name, mine, records, good, has, duration))
    return rows


def class_section(rows: Sequence[ClassRow]) -> list[Table]:
    """The table for a report; none where the trace names no class, tenant or model."""
    if len(rows) == 1:
        return []
    columns = ("class", "requests", "finished", "TTFT, ms", "P99", "TPOT, ms", "P99", "met", "goodput, 1/s")
    note = (
        "Met: the share of all requests of the class that met their objectives, those turned away included."
    )
    return [Table("Classes and tenants", columns, [_cells(row) for row in rows], note)]


def _cells(row: ClassRow) -> tuple[str, ...]:
    latencies = (row.mean_ttft_ms, row.p99_ttft_ms, row.mean_tpot_ms, row.p99_tpot_ms)
    return (
        "all" if row.kind == "all" else f"{row.kind.replace('_', ' ')} {row.name}",
        f"{row.requests:,}",
        f"{row.finished:,}",
        *("" if math.isnan(value) else f"{value:,.1f}" for value in latencies),
        "" if row.attainment is None else f"{100 * row.attainment:.1f} %",
        "" if row.goodput is None else f"{row.goodput:.2f}",
    )


def _seconds(records: Records) -> dict[str, np.ndarray]:
    ttft = records.first_token_time - records.arrival_time
    e2el = records.finish_time - records.arrival_time
    gaps = np.maximum(records.output_length - 1, 1)
    tpot = np.where(records.output_length > 1, (e2el - ttft) / gaps, np.nan)
    return {"ttft": ttft, "e2el": e2el, "tpot": tpot}


def _good(
    records: Records, slo: Mapping[str, Mapping[str, float]], default: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(met all its objectives, has some), of each request."""
    seconds, classes = _seconds(records), records.slo_class
    finished = records.status == FINISHED
    rest = np.ones(len(records), bool)
    good, has = np.zeros(len(records), bool), np.zeros(len(records), bool)
    for name, objectives in slo.items():
        if classes is None or name not in classes.names:
            continue
        mine = np.asarray(classes.codes) == list(classes.names).index(name)
        rest &= ~mine
        good |= mine & meets(objectives, seconds)
        has |= mine & bool(objectives)
    good |= rest & meets(default, seconds)
    has |= rest & bool(default)
    return good & finished, has


def _row(
    kind: str,
    name: str,
    mine: np.ndarray,
    records: Records,
    good: np.ndarray,
    has: np.ndarray,
    duration: float,
) -> ClassRow:
    done = mine & (records.status == FINISHED)
    seconds = _seconds(records)
    known = has[mine].all()
    met = int((good & mine).sum())
    return ClassRow(
        kind,
        name,
        int(mine.sum()),
        int(done.sum()),
        *_mean_and_p99(seconds["ttft"][done]),
        *_mean_and_p99(seconds["tpot"][done]),
        met / int(mine.sum()) if known else None,
        met / duration if known and duration > 0 else None,
    )


def _mean_and_p99(seconds: np.ndarray) -> tuple[float, float]:
    known = seconds[~np.isnan(seconds)] * 1000  # s -> ms
    return (float(known.mean()), float(np.percentile(known, 99))) if len(known) else (math.nan, math.nan)
