"""A published measurement as something the simulator can run: a trace, a deployment, and what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simulator.deployment import Deployment, Resolved
from simulator.errors import CapacityError, SimError, UnknownNameError
from simulator.steptime import StepTime, load_traits
from simulator.workload import Trace

__all__ = ["Case", "CaseSet", "fixed_lengths", "reason_of", "steady_lengths", "uniform_lengths"]


@dataclass(frozen=True)
class Case:
    """One measured configuration.

    *measured*: values by metric: ``ttft`` and ``tpot`` in s, ``throughput`` in output tokens/s, ``requests`` per s.
    *traits* names host costs other than those of the deployment's system. *group* is the configuration that is held
    out together. *per_request*: measured arrays by metric, aligned with the trace, where there are any.
    """

    trace: Trace
    deployment: Deployment
    measured: Mapping[str, float]
    gpu: str
    system: str
    dtype: str
    load_type: str
    label: str
    group: tuple[str, str, str]
    traits: str | None = None
    note: str = ""
    per_request: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self) -> Resolved:
        """The deployment looked up, with the host costs of the row's own system and version."""
        resolved = self.deployment.resolve()
        if self.traits is None:
            return resolved
        traits = load_traits(
            self.traits,
            max_num_seqs=resolved.limits.get("max_num_seqs", 256),
            max_num_batched_tokens=resolved.limits.get("max_num_batched_tokens"),
            host=resolved.profile.host,
        )
        step = resolved.steptime
        own = StepTime(step.model, step.laws, step.parallelism, traits, step.precision)
        return replace(resolved, steptime=own)


@dataclass
class CaseSet:
    """Cases of a file, and how many rows could not become one, by reason."""

    cases: list[Case] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    rows: int = 0


def reason_of(error: SimError) -> str:
    """Why a row was left out, without what differs between rows of one kind, so that they are counted together."""
    if isinstance(error, UnknownNameError):
        return f"unknown {error.kind} {error.name!r}"
    if isinstance(error, CapacityError):
        return "does not fit: " + str(error).split(":")[0]
    return str(error)


def fixed_lengths(n: int, isl: int, osl: int, max_concurrency: int | None = None) -> Trace:
    """*n* requests of equal lengths, all submitted at once."""
    outputs = np.full(n, osl)
    return Trace.from_columns(
        np.zeros(n), np.full(n, isl), outputs, max_tokens=outputs, max_concurrency=max_concurrency
    )


def steady_lengths(waves: int, isl: int, osl: int, concurrency: int) -> Trace:
    """A long run of equal requests in its steady state: the first *concurrency* ones are at all stages of decoding.

    Equal requests that start together would end together for ever; in a real run jitter drives them apart.
    """
    n = waves * concurrency
    outputs = np.full(n, osl)
    outputs[:concurrency] = np.maximum(np.arange(1, concurrency + 1) * osl // concurrency, 1)
    return Trace.from_columns(
        np.zeros(n), np.full(n, isl), outputs, max_tokens=outputs, max_concurrency=concurrency
    )


def uniform_lengths(
    n: int, isl: int, osl: int, ratio: float, seed: int, max_concurrency: int | None
) -> Trace:
    """*n* requests with whole lengths drawn from [ratio·L, L], all submitted at once."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(int(ratio * isl), isl + 1, n)
    outputs = rng.integers(int(ratio * osl), osl + 1, n)
    return Trace.from_columns(
        np.zeros(n), inputs, outputs, max_tokens=outputs, max_concurrency=max_concurrency
    )
