"""The engine's own run of a trace against the simulation of the same trace, policy and limits.

What is compared: time to first token, time per output token, end-to-end, inter-token latency, duration,
throughput, preemptions, batch size and KV usage over time, distributions and request by request; the recorded batches
themselves (`step_errors`); and whether the simulator, given the recorded step times, decides as the engine did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.recorded import SameSteps, recorded_trace, resolve_recorded, simulate_same_steps
from calibrate.step_errors import predict_recorded
from hwprofiles import EndToEnd
from hwprofiles.datasheet import write_profile
from hwprofiles.registry import parse_profile
from simulator.errors import ConfigurationError
from simulator.simulation import Result, simulate

__all__ = ["HEADLINE", "LATENCIES", "Comparison", "by_request", "compare_run", "write_end_to_end"]

Vector = NDArray[np.float64]
LATENCIES = ("ttft", "tpot", "e2el")
HEADLINE = (
    ("throughput", "total"),
    ("ttft", "mean"),
    ("ttft", "p99"),
    ("tpot", "mean"),
    ("tpot", "p99"),
    ("e2el", "mean"),
    ("e2el", "p99"),
)
"""Errors that a profile carries."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Comparison:
    """*metrics*: one row per metric and statistic (measured, simulated, error); *requests*: one per request.

    *steps*: one per recorded step (`step_errors`). *same* is the simulation that was given the recorded step times:
    whether it decided as the engine did.
    """

    recording: Mapping[str, Any]
    metrics: pd.DataFrame
    requests: pd.DataFrame
    steps: pd.DataFrame
    result: Result
    same: SameSteps

    def error(self, metric: str, statistic: str) -> float:
        """simulated / measured - 1."""
        rows = self.metrics
        found = rows[(rows["metric"] == metric) & (rows["statistic"] == statistic)]
        return float(found["error"].iloc[0])

    def end_to_end(self) -> EndToEnd:
        """What a profile says of it."""
        recording = self.recording
        return EndToEnd(
            system=recording["system"],
            trace=f"{len(self.recording['requests'])} requests of {recording['model']}",
            requests=len(recording["requests"]),
            load=recording.get("load"),
            date=recording["date"],
            clock=recording["clock"],
            errors={f"{m} {s}": round(self.error(m, s), 4) for m, s in HEADLINE},
            same_decisions=self.same.difference is None,
        )

    def agreement(self) -> pd.DataFrame:
        """Request by request, as `by_request`."""
        return by_request(self.requests)


def by_request(requests: pd.DataFrame) -> pd.DataFrame:
    """Median and 90th percentile of |error| over *requests*, and the distance of the two distributions, by latency.

    Each latency has a column and one ending in ``_simulated``. The distance is Kolmogorov's: the largest difference of
    the shares of requests within any time.
    """
    rows = []
    for name in LATENCIES:
        pair = requests[[name, f"{name}_simulated"]].dropna().to_numpy(float)
        pair = pair[pair[:, 0] > 0]  # a batch that is handed out at once has no time between tokens
        if len(pair):
            errors = np.abs(pair[:, 1] / pair[:, 0] - 1)
            rows.append((name, *np.quantile(errors, (0.5, 0.9)), distance(pair[:, 0], pair[:, 1])))
    return pd.DataFrame(rows, columns=["metric", "median", "p90", "distance"])


def write_end_to_end(profile: Path, comparisons: Sequence[Comparison]) -> None:
    """Put what came of *comparisons* into the file *profile*; a run of the same system and load is replaced."""
    written = parse_profile(profile)
    fresh = {(run.system, run.load): run for run in (one.end_to_end() for one in comparisons)}
    kept = {(run.system, run.load): run for run in written.end_to_end}
    runs = [run for _, run in sorted((kept | fresh).items(), key=lambda item: str(item[0]))]
    write_profile(written.model_copy(update={"end_to_end": runs}), profile)


def distance(a: Vector, b: Vector) -> float:
    """Largest difference of two empirical distribution functions."""
    points = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def compare_run(recording: Mapping[str, Any], profile: str, model: str | None = None) -> Comparison:
    """Simulate what was recorded with *profile*, and hold one against the other."""
    resolved = resolve_recorded(recording, profile, model)
    requests = pd.DataFrame(recording["requests"])
    if not any(requests["token_times"].map(len)):
        raise ConfigurationError("the recording has no request that got a token: there is nothing to compare")
    result = simulate(recorded_trace(recording), resolved, percentiles=(50, 90, 99))
    return Comparison(
        recording,
        _metrics(recording, requests, result),
        _by_request(requests, result.requests),
        predict_recorded(recording, profile, resolved.steptime),
        result,
        simulate_same_steps(recording, resolved),
    )


def _by_request(measured: pd.DataFrame, simulated: pd.DataFrame) -> pd.DataFrame:
    """``arrival`` and each latency in s of every request that finished on both sides: ``ttft``, ``ttft_simulated`` …"""
    both = (measured["status"] == "finished").to_numpy() & (simulated["status"] == "finished").to_numpy()
    engine, ours = _measured_latencies(measured[both]), _simulated_latencies(simulated[both])
    several = measured["token_times"][both].map(len).to_numpy() > 1
    columns = {"arrival": measured["arrival"][both].to_numpy(float)}
    for name in ("ttft", "e2el"):
        columns |= {name: engine[name], f"{name}_simulated": ours[name]}
    for name, values in (("tpot", engine["tpot"]), ("tpot_simulated", ours["tpot"])):
        columns[name] = np.full(len(several), np.nan)
        columns[name][several] = values
    return pd.DataFrame(columns)


def _metrics(recording: Mapping[str, Any], requests: pd.DataFrame, result: Result) -> pd.DataFrame:
    done = (requests["status"] == "finished").to_numpy()  # of a run cut short, who had ended
    measured, simulated = _measured_latencies(requests[done]), _simulated_latencies(result.requests[done])
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
        *_levels("running", steps["batch"], steps, series, "num_running"),
        *_levels("kv_blocks", steps["blocks_used"], steps, series, "kv_blocks_used"),
    ]


def _levels(
    name: str, measured: Any, steps: pd.DataFrame, series: pd.DataFrame, simulated: str
) -> list[tuple[str, str, float, float]]:
    """Mean over the time in which anything ran, and maximum."""
    busy = series[(series["num_running"] > 0) & (series["span"] > 0)]
    ours = float(np.average(busy[simulated], weights=busy["span"])) if len(busy) else 0.0
    mean = float(np.average(measured, weights=steps["seconds"]))
    return [
        (name, "mean", mean, ours),
        (name, "max", float(measured.max()), float(series[f"{simulated}_max"].max())),
    ]
