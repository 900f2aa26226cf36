"""What the simulator says of requests that a client has seen, beside what it saw.

The very requests are simulated at the moments they were sent. Simulated TTFT has the system's front end added (HTTP,
tokenisation, network), because a client cannot leave it out; `sim run` does. Queue and cache are the server's own
counters, averaged over the moments at which it ran something, against the simulation's averages over busy time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.observe.observation import Observation
from calibrate.validation import LATENCIES, by_request
from simulator.deployment import Resolved
from simulator.errors import ConfigurationError
from simulator.results import FINISHED, STATUS
from simulator.simulation import Result, simulate

__all__ = ["Prediction", "predict_observation"]

Vector = NDArray[np.float64]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Prediction:
    """*metrics*: seen, simulated and error by metric and statistic (s, requests, tokens/s or shares); *requests*:
    both of every request that finished on both sides.
    """

    metrics: pd.DataFrame
    requests: pd.DataFrame
    result: Result

    def error(self, metric: str, statistic: str) -> float:
        """simulated / seen - 1."""
        rows = self.metrics
        return float(rows[(rows["metric"] == metric) & (rows["statistic"] == statistic)]["error"].iloc[0])

    def agreement(self) -> pd.DataFrame:
        """Request by request, as `calibrate.validation.by_request`."""
        return by_request(self.requests)


def predict_observation(observation: Observation, resolved: Resolved) -> Prediction:
    """Simulate on *resolved* what *observation* saw."""
    result = simulate(observation.trace(), resolved, percentiles=(50, 90, 99))
    requests = _by_request(observation, result)
    if not len(requests):
        raise ConfigurationError("no request finished both in the observation and in the simulation")
    rows = [
        (
            name,
            statistic,
            *(_statistics(requests[column].dropna().to_numpy(float))[statistic] for column in pair),
        )
        for name in LATENCIES
        for pair in [(name, f"{name}_simulated")]
        for statistic in ("mean", *QUANTILES)
        if requests[name].notna().any()
    ]
    gaps = observation.gaps()
    if len(gaps):
        ours = [float(result.summary[f"{key}_itl_ms"] or 0.0) / 1e3 for key in ("mean", *QUANTILES)]
        rows += [
            ("itl", key, seen, mine)
            for (key, seen), mine in zip(_statistics(gaps).items(), ours, strict=True)
        ]
    rows += _totals(observation, result) + _levels(observation, result)
    metrics = pd.DataFrame(rows, columns=["metric", "statistic", "seen", "simulated"])
    metrics["error"] = metrics["simulated"] / metrics["seen"].where(metrics["seen"] != 0) - 1.0
    return Prediction(metrics, requests, result)


def _by_request(observation: Observation, result: Result) -> pd.DataFrame:
    kept = sorted(observation.kept(), key=lambda request: request.sent)
    done = np.array([request.status == STATUS[FINISHED] for request in kept]) & (
        result.records.status == FINISHED
    )
    sent, first, finish, outputs = np.array(
        [(r.sent, r.first_token, r.finish, r.output_length) for r in kept], dtype=float
    ).T
    ours, front = result.records, result.resolved.steptime.traits.engine.request_s
    simulated = (ours.arrival_time - front, ours.first_token_time, ours.finish_time, ours.output_length)
    columns = {"sent": sent[done], "input_length": ours.input_length[done], "output_length": outputs[done]}
    for suffix, times in (("", (sent, first, finish, outputs)), ("_simulated", simulated)):
        columns |= {f"{name}{suffix}": values[done] for name, values in _latencies(*times).items()}
    return pd.DataFrame(columns)


def _latencies(sent: Vector, first: Vector, finish: Vector, outputs: Vector) -> dict[str, Vector]:
    tpot = np.where(outputs > 1, (finish - first) / np.maximum(outputs - 1, 1), np.nan)
    return {"ttft": first - sent, "tpot": tpot, "e2el": finish - sent}


def _statistics(values: Vector) -> dict[str, float]:
    quantiles = {name: float(np.quantile(values, level)) for name, level in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles}


def _totals(observation: Observation, result: Result) -> list[tuple[str, str, float, float]]:
    """Seconds from the first sending to the last token, and output tokens per second."""
    seen, ours = observation.records(), result.records
    spans = [float(np.nanmax(r.finish_time) - np.nanmin(r.arrival_time)) for r in (seen, ours)]
    tokens = [float(r.output_length.sum()) for r in (seen, ours)]
    return [
        ("duration", "total", spans[0], spans[1]),
        ("throughput", "total", tokens[0] / spans[0], tokens[1] / spans[1]),
    ]


def _levels(observation: Observation, result: Result) -> list[tuple[str, str, float, float]]:
    busy = [sample for sample in observation.samples if sample.running > 0]
    series = result.timeseries
    series = series[series["num_running"] > 0]
    if not busy or not len(series):
        return []
    blocks = max(result.resolved.num_gpu_blocks, 1)
    used = series["kv_blocks_used"] / blocks
    pairs = {
        "running": ([sample.running for sample in busy], series["num_running"]),
        "waiting": ([sample.waiting for sample in busy], series["num_waiting"]),
        "kv_usage": ([sample.kv_usage for sample in busy], used),
    }
    return [
        (name, "mean", float(np.mean(seen)), float(np.average(ours, weights=series["span"])))
        for name, (seen, ours) in pairs.items()
    ]
