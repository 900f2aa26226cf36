"""What a trace is like: lengths, rate, burstiness, and how much of its prompts an infinite cache would have
held.

* CV: standard deviation / mean of the gaps between arrivals (1 for Poisson).
* IDC(w): variance / mean of the arrivals per bin of w seconds (1 for Poisson at every w; grows with w where
  the rate drifts).
* prefix reuse: leading tokens of a prompt that an earlier prompt began with, or that an earlier output holds,
  over all prompt tokens. It bounds the hit rate of any prefix cache from above, up to blocks cut at the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.content import OUTPUT_ID_BASE
from simulator.workload.spread import quantum
from simulator.workload.trace import Trace

__all__ = ["IDC_WINDOWS", "Quantiles", "TraceStats", "reused_tokens", "trace_stats"]

IDC_WINDOWS = (1, 10, 60)
"""Bin widths in s."""


@dataclass(frozen=True)
class Quantiles:
    """Of a column of lengths, in tokens."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Quantiles:
        """Linearly interpolated quantiles."""
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(float(values.mean()), p50, p90, p99, float(values.max()))


@dataclass(frozen=True)
class TraceStats:
    """Statistics of a trace; NaN where the trace has nothing to compute them from."""

    requests: int
    input_length: Quantiles
    output_length: Quantiles
    span_s: float
    request_rate: float
    """Arrivals per second: gaps / span."""
    cv: float
    idc: dict[int, float]
    """By bin width in s."""
    quantum_s: float
    sessions: int
    turns_per_session: float
    prefix_reuse: float
    """Share of prompt tokens."""
    requests_with_reuse: float
    """Share of requests."""
    runs_per_request: float

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts of numbers."""
        return asdict(self)


def trace_stats(trace: Trace) -> TraceStats:
    """All statistics of *trace*."""
    arrivals = trace.arrival_time[~np.isnan(trace.arrival_time)]
    gaps = np.diff(arrivals)
    span = float(arrivals[-1] - arrivals[0])
    reused = reused_tokens(trace)
    named = trace.session[trace.session >= 0]
    sessions = len(np.unique(named))
    return TraceStats(
        requests=len(trace),
        input_length=Quantiles.of(trace.input_length),
        output_length=Quantiles.of(trace.output_length),
        span_s=span,
        request_rate=trace.request_rate,
        cv=float(gaps.std() / gaps.mean()) if span > 0 else float("nan"),
        idc={width: index_of_dispersion(arrivals, width) for width in IDC_WINDOWS},
        quantum_s=quantum(arrivals),
        sessions=sessions,
        turns_per_session=len(named) / sessions if sessions else float("nan"),
        prefix_reuse=float(reused.sum() / trace.input_length.sum())
        if len(trace.content_ids)
        else float("nan"),
        requests_with_reuse=float((reused > 0).mean()) if len(trace.content_ids) else float("nan"),
        runs_per_request=len(trace.content_ids) / len(trace),
    )


def index_of_dispersion(arrivals: NDArray[np.float64], width: float) -> float:
    """Variance / mean of the counts per bin of *width* s; NaN for fewer than two bins."""
    bins = int(arrivals[-1] / width) if arrivals[-1] <= 1e8 * width else 0
    if bins < 2:
        return float("nan")
    counts = np.bincount((arrivals / width).astype(np.int64), minlength=bins)[:bins]  # whole bins only
    return float(counts.var() / counts.mean())


def reused_tokens(trace: Trace) -> NDArray[np.int64]:
    """Leading tokens of each prompt that were there before it, int64[n].

    Runs are named by everything before them, so a run was there as far as its id ever was.
    """
    ids, tokens = trace.content_ids, trace.content_tokens
    row = np.repeat(np.arange(len(trace)), np.diff(trace.content_offsets))
    seen = longest_before(ids, tokens)
    named = ids >= OUTPUT_ID_BASE
    source = np.where(named, ids - OUTPUT_ID_BASE, 0)
    seen = np.where(named, np.where(source < row, trace.output_length[source], 0), seen)
    short = np.concatenate(([0], np.cumsum(seen < tokens)))
    whole_before = short[:-1] == short[trace.content_offsets[:-1]][row]
    held = np.where(whole_before, np.minimum(seen, tokens), 0)
    return np.bincount(row, weights=held, minlength=len(trace)).astype(np.int64)


def longest_before(ids: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most tokens of the same id in earlier entries, 0 for none."""
    if len(ids) == 0:
        return tokens
    group = np.unique(ids, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    base = group[order] * (int(tokens.max()) + 1)  # keeps the running maximum of one group from the next
    running = np.maximum.accumulate(base + tokens[order])
    before = np.zeros(len(ids), np.int64)
    before[order[1:]] = np.maximum(running[:-1] - base[1:], 0)
    return before
