"""Recordings of machines whose host costs are known: simulated, and then seen as a client sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from calibrate.observe.observation import Header, MetricsSample, Observation, ObservedRequest
from simulator.deployment import Deployment
from simulator.simulation import simulate
from simulator.workload import Trace

STEP, SEQUENCE, FRONT = 3e-3, 20e-6, 0.03
VLLM = Deployment.of(model="llama-3.1-8b", gpu="h100", system="vllm")


def see(
    deployment: Deployment,
    n: int = 80,
    rate: float = 20.0,
    noise: float = 0.0,
    front: float = FRONT,
    costs: tuple[float, float] = (STEP, SEQUENCE),
    **header: Any,
) -> Observation:
    """What a client sees of *deployment* on a machine whose host costs are the known ones."""
    rng = np.random.default_rng(4)
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    trace = Trace.from_columns(arrivals, rng.integers(50, 1500, n), rng.integers(2, 120, n))
    resolved = deployment.resolve()
    traits = resolved.steptime.traits
    engine = replace(traits.engine, step_s=costs[0], seq_s=costs[1])
    traits = replace(traits, engine=engine)
    if not traits.overlap:
        traits = replace(traits, per_step_s=0.0, per_seq_s=0.0)
    result = simulate(trace, replace(resolved, steptime=resolved.steptime.with_traits(traits)))
    series = result.timeseries
    samples = [
        MetricsSample(time, running, waiting, used / resolved.num_gpu_blocks)
        for time, running, waiting, used in series[
            ["time", "num_running", "num_waiting", "kv_blocks_used"]
        ].to_numpy()
    ]
    requests = [_request(row, front, np.exp(noise * rng.normal())) for _, row in result.requests.iterrows()]
    return Observation(Header("a known machine", "2026-01-01", n, **header), requests, samples)


def _request(row: Any, front: float, error: float) -> ObservedRequest:
    sent = float(row.arrival_time)
    first = float(row.first_token_time) + front
    last = first + (float(row.finish_time) - float(row.first_token_time)) * error
    lengths = (int(row.input_length), int(row.output_length))
    return ObservedRequest(
        str(row.request_id),
        sent,
        *lengths,
        sent=sent,
        first_token=first,
        finish=last,
        output_length=lengths[1],
        token_times=None,
        status="finished",
    )
