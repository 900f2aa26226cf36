"""The few kinds of run that the claims are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError
from simulator.results.series import pooled_mean
from simulator.simulation import Result, simulate
from simulator.steptime import StepTime
from simulator.workload import Trace

__all__ = [
    "Case",
    "at_once",
    "at_rate",
    "bisect",
    "in_vllms_engine",
    "mean_level",
    "normalized_latency",
    "requests_per_minute",
    "served",
]

Ints = NDArray[np.int64]
REACH = 256.0
"""How far beyond its bounds `bisect` looks."""


def at_once(prompt: Ints, output: Ints, samples: int = 1) -> Trace:
    """Everything arrives at t = 0: the throughput of a system that never runs dry."""
    n = len(prompt)
    return Trace.from_columns(np.zeros(n), prompt, output, n=np.full(n, samples))


def at_rate(prompt: Ints, output: Ints, rate: float, samples: int = 1, seed: int = 1) -> Trace:
    """Poisson arrivals of *rate* requests/s; the same draw for every rate, stretched."""
    n = len(prompt)
    gaps = np.random.default_rng(seed).exponential(1.0, n) / rate
    return Trace.from_columns(np.cumsum(gaps), prompt, output, n=np.full(n, samples))


def served(trace: Trace, **deployment: Any) -> Result:
    """*trace* through that deployment."""
    return simulate(trace, Deployment.of(**deployment))


def in_vllms_engine(system: str, **deployment: Any) -> Resolved:
    """*system* as the authors of vLLM's paper ran their own version of it: vLLM 0.2's host costs and KV memory.

    Then only policy and memory layout differ, as in the paper (section 6.1).
    """
    vllm = Deployment.of(**deployment, system="vllm-0.2").resolve()
    if system == "vllm-0.2":
        return vllm
    slots = vllm.num_gpu_blocks * vllm.budget.block_size  # a block of these systems is one token
    own = Deployment.of(**deployment, system=system, num_gpu_blocks=slots).resolve()
    steps = StepTime(own.model, own.steptime.laws, own.parallelism, vllm.steptime.traits, own.precision)
    return replace(own, steptime=steps)


def requests_per_minute(result: Result) -> float:
    """Completed requests per minute of the run."""
    return 60.0 * float(result.summary["request_throughput"] or 0.0)


def mean_level(result: Result, level: str) -> float:
    """Average over time of one of `simulator.results.points.LEVELS`."""
    return pooled_mean(result.series, level)


def normalized_latency(result: Result) -> float:
    """Mean of end-to-end latency over output length, s per token (Orca; vLLM's paper, 6.1), of what finished."""
    records = result.records
    done = np.isfinite(records.first_token_time) & (records.output_length > 0)
    latency = records.finish_time[done] - records.arrival_time[done]
    return float(np.mean(latency / records.output_length[done]))


def bisect(bearable: Callable[[float], bool], low: float, high: float, steps: int = 7) -> float:
    """The largest x in [*low*, *high*] that is *bearable*, to (*high* / *low*)^(2^-*steps*), on a scale of ratios.

    Goes further down, or up, by factors of two if *low* is not bearable, or *high* is. Raises `ConfigurationError`
    where nothing within `REACH` is or everything is: a run may be too short to tell.
    """
    least, most = low / REACH, high * REACH
    while not bearable(low):
        low, high = low / 2, low
        if low < least:
            raise ConfigurationError(f"nothing from {least:.3g} on is bearable")
    while bearable(high):
        low, high = high, 2 * high
        if high > most:
            raise ConfigurationError(f"everything up to {most:.3g} is bearable: the run is too short to tell")
    for _ in range(steps):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if bearable(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Case:
    """A model on a GPU as a claim names them."""

    label: str
    model: str
    gpu: str
    tensor_parallel_size: int = 1

    @property
    def deployment(self) -> dict[str, Any]:
        """Its part of a deployment."""
        return {
            "model": self.model,
            "gpu": self.gpu,
            "tensor_parallel_size": self.tensor_parallel_size,
        }
