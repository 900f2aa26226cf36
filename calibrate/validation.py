"""The engine's own run of a trace against the simulation of the same trace, policy and limits.

What is compared: time to first token, time per output token, end-to-end, inter-token latency, duration,
throughput, preemptions, mean batch and mean KV usage; and, step by step, the measured time of every batch with what
the profile predicts for that very batch, so that a difference in the metrics can be traced to a kind of step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.fit.raw import predicted_steps, step_frame
from calibrate.recorded import SameSteps, recorded_trace, resolve_recorded, simulate_same_steps
from hwprofiles import load_profile
from simulator.deployment import Resolved
from simulator.simulation import Result, simulate
from simulator.steptime import HostTraits, StepTime

__all__ = ["Comparison", "compare_run"]

Vector = NDArray[np.float64]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Comparison:
    """*metrics*: one row per metric and statistic (measured, simulated, error); *steps*: one per kind of step.

    *same* is the simulation that was given the recorded step times: whether it decided as the engine did.
    """

    metrics: pd.DataFrame
    steps: pd.DataFrame
    result: Result
    same: SameSteps

    def error(self, metric: str, statistic: str) -> float:
        """simulated / measured - 1."""
        rows = self.metrics
        found = rows[(rows["metric"] == metric) & (rows["statistic"] == statistic)]
        return float(found["error"].iloc[0])


def compare_run(recording: Mapping[str, Any], profile: str, model: str | None = None) -> Comparison:
    """Simulate what was recorded with *profile*, and hold one against the other."""
    resolved = resolve_recorded(recording, profile, model)
    requests = pd.DataFrame(recording["requests"])
    result = simulate(recorded_trace(recording), resolved, percentiles=(50, 90, 99))
    return Comparison(
        _metrics(recording, requests, result),
        step_errors(recording, profile, resolved),
        result,
        simulate_same_steps(recording, resolved),
    )


def _metrics(recording: Mapping[str, Any], requests: pd.DataFrame, result: Result) -> pd.DataFrame:
    measured, simulated = _measured_latencies(requests), _simulated_latencies(result.requests)
    rows = [
        (name, statistic, value, _statistics(simulated[name])[statistic])
        for name, values in measured.items()
        for statistic, value in _statistics(values).items()
    ]
    gaps = np.concatenate([np.diff(times) for times in requests["token_times"]])
    for statistic, value in _statistics(gaps).items():
        rows.append(("itl", statistic, value, float(result.summary[f"{statistic}_itl_ms"] or 0.0) / 1e3))
    rows += _totals(recording, requests, result)
    frame = pd.DataFrame(rows, columns=["metric", "statistic", "measured", "simulated"])
    frame["error"] = frame["simulated"] / frame["measured"].where(frame["measured"] != 0) - 1.0
    return frame


def _measured_latencies(requests: pd.DataFrame) -> dict[str, Vector]:
    """Seconds per finished request, by metric."""
    done = requests[requests["token_times"].map(len) > 0]
    first = done["token_times"].map(lambda times: times[0]).to_numpy(float)
    last = done["token_times"].map(lambda times: times[-1]).to_numpy(float)
    return _latencies(
        done["arrival"].to_numpy(float), first, last, done["token_times"].map(len).to_numpy(float)
    )


def _simulated_latencies(requests: pd.DataFrame) -> dict[str, Vector]:
    done = requests[requests["first_token_time"].notna()]
    names = ("arrival_time", "first_token_time", "finish_time", "output_length")
    return _latencies(*(done[name].to_numpy(float) for name in names))


def _latencies(arrival: Vector, first: Vector, last: Vector, outputs: Vector) -> dict[str, Vector]:
    several = outputs > 1
    tpot = (last - first)[several] / (outputs[several] - 1)
    return {"ttft": first - arrival, "tpot": tpot, "e2el": last - arrival}


def _statistics(values: Vector) -> dict[str, float]:
    if not len(values):
        return {}
    quantiles = {name: float(np.quantile(values, level)) for name, level in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles}


def _totals(
    recording: Mapping[str, Any], requests: pd.DataFrame, result: Result
) -> list[tuple[str, str, float, float]]:
    """Duration (s), output throughput (tokens/s), preemptions, mean batch and KV blocks over busy time."""
    last = max(times[-1] for times in requests["token_times"] if times)
    tokens = float(requests["token_times"].map(len).sum())
    duration = float(np.nanmax(result.requests["finish_time"]) - requests["arrival"].min())
    measured = float(last - requests["arrival"].min())
    steps, series = pd.DataFrame(recording["steps"]), result.timeseries
    preempted = float(result.requests["num_preemptions"].sum())
    return [
        ("duration", "total", measured, duration),
        ("throughput", "total", tokens / measured, tokens / duration),
        ("preemptions", "total", float(requests["num_preemptions"].sum()), preempted),
        ("running", "mean", *_means(steps, "num_running", series, "num_running")),
        ("kv_blocks", "mean", *_means(steps, "blocks_used", series, "kv_blocks_used")),
    ]


def _means(steps: pd.DataFrame, ours: str, series: pd.DataFrame, theirs: str) -> tuple[float, float]:
    """Weighted by time while anything ran."""
    busy = series[series["num_running"] > 0]
    measured = float(np.average(steps[ours], weights=steps["seconds"]))
    return measured, float(np.average(busy[theirs], weights=busy["span"])) if len(busy) else 0.0


def step_errors(recording: Mapping[str, Any], profile: str, resolved: Resolved) -> pd.DataFrame:
    """Measured and predicted seconds of the recorded batches themselves, by kind of step."""
    host = load_profile(profile).host
    old = resolved.steptime
    bare = HostTraits(layer_overhead_s=host.layer_overhead_s, graph_sizes=tuple(recording["graph_sizes"]))
    operators = StepTime(old.model, old.laws, old.parallelism, bare, old.precision)
    steps = [step for step in recording["steps"] if "prefills" in step]
    frame = step_frame(steps, operators)
    costs = np.array([host.per_step_s, host.per_seq_s, host.per_new_token_s])
    frame["predicted"] = predicted_steps(frame, costs)
    frame["kind"] = [_kind(step) for step in steps]
    frame["ape"] = (frame["predicted"] / frame["seconds"] - 1).abs()
    table = frame.groupby("kind").agg(
        count=("seconds", "size"),
        measured=("seconds", "sum"),
        operators=("operators", "sum"),
        predicted=("predicted", "sum"),
        median_ape=("ape", "median"),
    )
    return table.assign(error=table["predicted"] / table["measured"] - 1)


def _kind(step: Mapping[str, Any]) -> str:
    return "decode" if not step["prefills"] else "mixed" if step["decodes"] else "prefill"
