"""A run in numbers: the keys of vLLM's benchmark result, and the simulator's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simulator.errors import ConfigurationError
from simulator.results.invariants import check_conservation
from simulator.results.itl import InterTokenLatency
from simulator.results.latencies import LATENCIES
from simulator.results.metric import LatencyMetric, Number
from simulator.results.metrics import METRICS
from simulator.results.overload import Overload, detect_overload
from simulator.results.records import CANCELLED, FAILED, LOST, REJECTED, STATUS, Records
from simulator.results.sample import Sample
from simulator.results.series import StepSeries
from simulator.scheduling.speculative import DraftCounts

DEFAULT_PERCENTILES = (50.0, 90.0, 99.0)
MS_PER_S = 1000.0


@dataclass(frozen=True)
class Intervals:
    """(low, high) of each number, over replications of the run."""

    level: float
    replications: int
    of: str
    """``mean``: confidence interval of the expected value; ``run``: where one further run would fall."""
    values: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Every metric of a run by its key; latencies in ms, everything else in the unit of its `Metric`."""

    values: dict[str, Number]
    percentiles: tuple[float, ...]
    goodput: dict[str, float]
    reasons: dict[str, dict[str, int]]
    """How often each reason occurred, by status."""
    overload: Overload | None
    sample: Sample = field(repr=False)
    intervals: Intervals | None = None

    def __getitem__(self, key: str) -> Number:
        return self.values[key]

    def to_json(
        self, *, detailed: bool = False, metadata: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """The run as plain Python, ready for `json.dumps`: *metadata* (model_id, request_rate, …), then the
        numbers.

        With *detailed* vLLM's arrays per request follow, in seconds: one entry per request that arrived, in
        the order of the trace. ``itls`` is not among them: gaps are not kept per request.
        """
        result: dict[str, Any] = dict(metadata or {})
        flat = {key: value for key, value in self.values.items() if not key.startswith("fragmentation_")}
        result |= {key: _finite(value) for key, value in flat.items()}
        result["fragmentation"] = {
            key.removeprefix("fragmentation_"): _finite(value)
            for key, value in self.values.items()
            if key.startswith("fragmentation_")
        }
        if self.sample.drafts is not None:
            result["spec_decode_per_position_acceptance_rates"] = self.sample.drafts.per_position
        result |= {"goodput": self.goodput or None, "reasons": self.reasons, "overload": self._overload()}
        if self.intervals is not None:
            result["intervals"] = vars(self.intervals) | {
                "values": {key: list(pair) for key, pair in self.intervals.values.items()}
            }
        return result | (per_request(self.sample.records) if detailed else {})

    def _overload(self) -> dict[str, Any] | None:
        if self.overload is None:
            return None
        return {
            key: _finite(value) if isinstance(value, float) else value
            for key, value in vars(self.overload).items()
        }

    def with_intervals(
        self, replications: Sequence[Summary], level: float = 0.9, of: str = "mean"
    ) -> Summary:
        """This summary with an interval per number, by Student's t over independent *replications* (this run
        among them or not).

        *of* ``mean`` is the confidence interval of the expected value, x̄ ± t·s/√k; ``run`` predicts one
        further run, x̄ ± t·s·√(1 + 1/k). Numbers that are not whole become the mean x̄ of the replications,
        so that they lie inside.
        """
        if len(replications) < 2:
            raise ConfigurationError(f"an interval needs at least 2 replications, got {len(replications)}")
        if not 0 < level < 1:
            raise ConfigurationError(f"interval level {level}: must be between 0 and 1")
        spread = {"mean": len(replications) ** -0.5, "run": (1 + 1 / len(replications)) ** 0.5}
        if of not in spread:
            raise ConfigurationError(f"interval of {of!r}: must be 'mean' or 'run'")
        values, intervals = dict(self.values), {}
        for key in self.values:
            runs = [summary.values.get(key) for summary in replications]
            if known := _all_known(runs):
                mean, half = _student(known, level, spread[of])
                intervals[key] = (mean - half, mean + half)
                values[key] = mean if isinstance(self.values[key], float) else self.values[key]
        return replace(self, values=values, intervals=Intervals(level, len(replications), of, intervals))


def summarize(
    records: Records,
    itl: InterTokenLatency,
    series: StepSeries | Sequence[StepSeries],
    *,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = DEFAULT_PERCENTILES,
    warmup: float = 0.0,
    end_time: float | None = None,
    injected: int | None = None,
    drafts: DraftCounts | None = None,
) -> Summary:
    """Check that nothing is lost, then compute every metric.

    *series*: one per replica. *goodput*: objectives in ms (`parse_goodput`). *warmup*: requests that arrive
    in the first *warmup* seconds are left out of latencies and throughputs (the driver clears *itl* at that
    moment). *end_time* (s): where the run was cut off, if it was. *injected*: the driver's own count of
    arrivals. *drafts*: what became of them, with speculation. Raises `ConservationError`.
    """
    check_conservation(records, injected)
    replicas = [series] if isinstance(series, StepSeries) else list(series)
    sample = Sample(records, itl, replicas, dict(goodput or {}), warmup, end_time, drafts)
    values: dict[str, Number] = {m.tag: m.compute(sample) for m in METRICS}
    for m in LATENCIES:
        values |= _latency_values(m, sample, percentiles)
    return Summary(
        values=values,
        percentiles=tuple(percentiles),
        goodput=dict(goodput or {}),
        reasons={STATUS[s]: records.reason_counts(s) for s in (REJECTED, FAILED, CANCELLED, LOST)},
        overload=detect_overload(records),
        sample=sample,
    )


def percentile_word(p: float) -> str:
    """``p99`` or ``p99.9``, as vLLM writes it."""
    return f"p{int(p) if p == int(p) else p}"


def per_request(records: Records) -> dict[str, list[Any]]:
    """vLLM's arrays per request, in seconds and tokens; None where it did not happen."""
    here = np.flatnonzero(records.status >= 0)
    arrival = records.arrival_time[here]
    columns = {
        "ttfts": records.first_token_time[here] - arrival,
        "latencies": records.finish_time[here] - arrival,
        "start_times": arrival,
        "queue_times": records.first_scheduled_time[here] - arrival,
    }
    lists: dict[str, list[Any]] = {
        "input_lens": records.input_length[here].tolist(),
        "output_lens": records.output_length[here].tolist(),
    }
    lists |= {name: [_finite(value) for value in column.tolist()] for name, column in columns.items()}
    return lists | {"errors": [records.reasons[code] for code in records.reason[here].tolist()]}


def _latency_values(
    m: LatencyMetric, sample: Sample, percentiles: Sequence[float]
) -> dict[str, float | int | None]:
    source = m.compute(sample)
    keys: dict[str, Number] = {
        f"mean_{m.tag}_ms": source.mean * MS_PER_S,
        f"median_{m.tag}_ms": source.median * MS_PER_S,
        f"std_{m.tag}_ms": source.std * MS_PER_S,
        f"max_{m.tag}_ms": source.max * MS_PER_S,
    }
    for p in percentiles:
        keys[f"{percentile_word(p)}_{m.tag}_ms"] = source.percentile(p) * MS_PER_S
    return keys


def _all_known(runs: Sequence[Number]) -> list[float] | None:
    known = [float(value) for value in runs if value is not None and math.isfinite(value)]
    return known if len(known) == len(runs) else None


def _student(runs: Sequence[float], level: float, spread: float) -> tuple[float, float]:
    """Mean of *runs* and half the width of the interval at *level*."""
    from scipy.special import stdtrit

    deviation = float(np.std(runs, ddof=1))
    return float(np.mean(runs)), float(stdtrit(len(runs) - 1, (1 + level) / 2)) * deviation * spread


def _finite(value: Number) -> Number:
    """*value*, or None for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else value
