"""Measured cases run through the simulator, and the errors by metric, device, system and precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from calibrate.fit.law_fit import error_summary
from calibrate.serving.case import Case, reason_of
from simulator.errors import SimError
from simulator.simulation import Result, simulate

__all__ = ["ServingScore", "predict_case", "score_cases", "summarize_serving"]

GROUP = ("metric", "gpu", "system", "dtype")
MS = 1e3
NORMAL_90 = 1.6449
"""90 % of a standard normal lie within this of nought."""
BEHIND_FRONT_END = ("closed_loop",)
"""Loads whose front end the fitted cost of a request describes."""


@dataclass
class ServingScore:
    """One row per case and metric, and how many cases could not be simulated, by reason."""

    rows: pd.DataFrame
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def predict_case(case: Case) -> dict[str, float]:
    """What the simulator says for every metric that was measured, in the same units."""
    result = _simulated(case)
    return {metric: METRICS[metric](result, case) for metric in case.measured}


def _per_request(result: Result, case: Case) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Absolute relative error of every request, for the latencies that were logged."""
    records = result.records
    decoded = np.maximum(records.output_length - 1, 1)
    predicted = {
        "ttft": records.first_token_time - records.arrival_time,
        "tpot": (records.finish_time - records.first_token_time) / decoded,
    }
    return {name: np.abs(predicted[name] / values - 1.0) for name, values in case.per_request.items()}


def _simulated(case: Case) -> Result:
    result = simulate(case.trace, case.resolve())
    if result.rejections:
        reason, count = next(iter(result.rejections.items()))
        raise SimError(f"{count} of {len(case.trace)} requests rejected: {reason.split(':')[0]}")
    return result


def _covered(case: Case, metric: str, predicted: float) -> float:
    """1 or 0: whether the 90 % interval holds the measured value; NaN for a metric without a spread of its own."""
    if metric not in ("ttft", "tpot"):
        return np.nan
    resolved = case.resolve()
    spread = resolved.steptime.traits.engine.spread_for(resolved.profile.name, resolved.model.name)
    width = NORMAL_90 * (spread.ttft if metric == "ttft" else spread.step)
    return float(abs(np.log(predicted / case.measured[metric])) <= width)


def _latency(name: str) -> Callable[[Result, Case], float]:
    """Mean latency; one that a client saw includes the front end's share."""
    front = name in ("ttft", "e2el")

    def value(result: Result, case: Case) -> float:
        seconds = float(result.summary[f"mean_{name}_ms"] or np.nan) / MS
        through_front_end = front and case.load_type in BEHIND_FRONT_END
        return seconds + result.resolved.steptime.traits.engine.request_s * through_front_end

    return value


def _decode_rate(result: Result, case: Case) -> float:
    """Tokens per second while all of a batch decode."""
    return len(case.trace) * MS / float(result.summary["mean_tpot_ms"] or np.nan)


def _prefill_rate(result: Result, case: Case) -> float:
    """Prompt tokens per second until the last first token."""
    return float(case.trace.input_length.sum()) * MS / float(result.summary["max_ttft_ms"] or np.nan)


def _rate(name: str) -> Callable[[Result, Case], float]:
    return lambda result, case: float(result.summary[name] or np.nan)


METRICS: dict[str, Callable[[Result, Case], float]] = {
    "ttft": _latency("ttft"),
    "tpot": _latency("tpot"),
    "itl": _latency("itl"),
    "e2e_latency": _latency("e2el"),
    "throughput": _rate("output_throughput"),
    "total_throughput": _rate("total_token_throughput"),
    "requests": _rate("request_throughput"),
    "makespan": _rate("duration"),
    "decode_throughput": _decode_rate,
    "prefill_throughput": _prefill_rate,
}
"""How each measured metric is read from a finished simulation; s, tokens/s or requests/s."""


def score_cases(cases: Iterable[Case], progress: Callable[[], None] | None = None) -> ServingScore:
    """Simulate every case; cases that cannot be are counted by reason."""
    rows: list[dict[str, Any]] = []
    score = ServingScore(pd.DataFrame())
    for case in cases:
        try:
            result = _simulated(case)
            predicted = {metric: METRICS[metric](result, case) for metric in case.measured}
            per_request = _per_request(result, case)
        except SimError as error:
            score.skipped[reason_of(error)] += 1
            continue
        finally:
            if progress is not None:
                progress()
        if case.note:
            score.notes[case.note] += 1
        rows += [_row(case, metric, predicted[metric]) for metric in case.measured]
        rows += [_request_row(case, metric, values) for metric, values in per_request.items()]
    score.rows = pd.DataFrame(rows, columns=list(_row_names()))
    return score


def _row_names() -> tuple[str, ...]:
    return (*GROUP, "load_type", "label", "group", "measured", "predicted", "ape", "covered")


def _row(case: Case, metric: str, predicted: float) -> dict[str, Any]:
    measured = case.measured[metric]
    return {
        "metric": metric,
        "gpu": case.gpu,
        "system": case.system,
        "dtype": case.dtype,
        "load_type": case.load_type,
        "label": case.label,
        "group": "/".join(case.group),
        "measured": measured,
        "predicted": predicted,
        "ape": abs(predicted / measured - 1.0),
        "covered": _covered(case, metric, predicted),
    }


def _request_row(case: Case, metric: str, errors: Any) -> dict[str, Any]:
    """The mean error over the requests of a logged run, as a row beside that of its mean."""
    row = _row(case, metric, case.measured[metric])
    known = errors[np.isfinite(errors)]
    return row | {"metric": f"{metric}_per_request", "ape": float(known.mean()), "covered": np.nan}


def summarize_serving(rows: pd.DataFrame, by: Sequence[str] = GROUP) -> list[dict[str, Any]]:
    """Rows, mean, median and 90th percentile of the absolute relative error (fractions) of every group."""
    groups = []
    for names, part in rows.groupby(list(by), sort=True):
        mean, median, p90 = error_summary(part["ape"].to_numpy(float))
        named = dict(zip(by, names if isinstance(names, tuple) else (names,), strict=True))
        groups.append({**named, "rows": len(part), "mean_ape": mean, "median_ape": median, "p90_ape": p90})
    return groups
