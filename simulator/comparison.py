"""Alternatives on the same trace, side by side, and what a change between two of them is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.breakdown import request_parts, time_breakdown
from simulator.errors import ConfigurationError
from simulator.simulation import Result

__all__ = ["COMPARED", "Cause", "Row", "compare", "explain"]

COMPARED = (
    ("completed", "requests finished", ""),
    ("rejected", "requests rejected", ""),
    ("request_throughput", "throughput", "req/s"),
    ("output_throughput", "output tokens", "tok/s"),
    ("mean_ttft_ms", "TTFT mean", "ms"),
    ("p99_ttft_ms", "TTFT P99", "ms"),
    ("mean_tpot_ms", "TPOT mean", "ms"),
    ("p99_tpot_ms", "TPOT P99", "ms"),
    ("p99_itl_ms", "ITL P99", "ms"),
    ("mean_e2el_ms", "end-to-end mean", "ms"),
    ("mean_queue_time_ms", "queue mean", "ms"),
    ("preemptions", "preemptions", ""),
    ("kv_cache_usage_mean", "KV usage mean", "%"),
    ("mean_batch_size", "batch size mean", ""),
    ("prefix_cache_hit_rate", "prefix cache hits", "%"),
)
"""Key of the summary, what it is called, unit."""


@dataclass(frozen=True)
class Row:
    """One metric over all alternatives; *changes* are relative to the first, None where that says nothing."""

    name: str
    unit: str
    values: list[float | None]
    changes: list[float | None]


@dataclass(frozen=True)
class Cause:
    """Part of the mean end-to-end latency of a finished request before and after, s."""

    name: str
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def compare(results: Sequence[Result]) -> list[Row]:
    """One row per metric. The results must be of one trace."""
    if len(results) < 2:
        raise ConfigurationError(f"a comparison needs at least 2 alternatives, got {len(results)}")
    if len({len(result.trace) for result in results}) > 1:
        raise ConfigurationError("a comparison needs one trace for all alternatives")
    rows = []
    for key, name, unit in COMPARED:
        scale = 100.0 if unit == "%" else 1.0
        values = [_number(result.summary.values.get(key), scale) for result in results]
        base = values[0]
        changes = [None if v is None or not base else v / base - 1 for v in values]
        rows.append(Row(name, unit, values, changes))
    return rows


def explain(before: Result, after: Result) -> list[Cause]:
    """What the change of the mean end-to-end latency is made of, largest first; the parts add up to it.

    Waiting and prefill are taken as they are. Decode is shared out by what the iterations were made of, and
    so is prefill: an estimate, since a request's iterations are not those of the run on average.
    """
    was, now = _parts(before), _parts(after)
    names = list(dict.fromkeys([*was, *now]))
    causes = [Cause(name, was.get(name, 0.0), now.get(name, 0.0)) for name in names]
    return sorted(causes, key=lambda cause: -abs(cause.change))


def _parts(result: Result) -> dict[str, float]:
    parts = request_parts(result)
    steps = time_breakdown(result)
    total = sum(steps.values())
    split: dict[str, float] = {}
    for phase, seconds in parts.items():
        if phase in ("prefill", "decode") and total:
            for family, share in steps.items():
                split[f"{phase}: {family}"] = seconds * share / total
        else:
            split[phase] = seconds
    return split


def _number(value: object, scale: float) -> float | None:
    return scale * float(value) if isinstance(value, int | float) and value == value else None
