"""Small replicas with a fake clock, and clusters of them drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy

from simulator.cluster import Fleet, Pool
from simulator.results import check_conservation
from simulator.scheduling import VllmV1
from simulator.workload import Runs, Trace


class FakeStepTime:
    """Step times that grow in everything, so that order is told by the clock."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        work = sum(chunk * (1 + 0.001 * (context + chunk)) for chunk, context in prefills)
        return 0.010 + 0.0003 * num_decodes + 0.00001 * decode_context + 0.0002 * work

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]


def small_scheduler(**options: Any) -> VllmV1:
    """A policy for which everything is scarce."""
    limits: dict[str, Any] = {"num_gpu_blocks": 60, "block_size": 4, "max_num_seqs": 6,
                              "max_num_batched_tokens": 64, "max_model_len": 160}  # fmt: skip
    return VllmV1(**limits | options)


@pytest.fixture
def make_pool() -> Callable[..., Pool]:
    """``make_pool(name, replicas, …)``: small replicas; *scheduler* options in a dict."""

    def make(name: str = "pool", replicas: int = 2, scheduler: Any = None, **options: Any) -> Pool:
        limits = scheduler or {}
        return Pool(
            name,
            lambda: small_scheduler(**limits),
            options.pop("steptime", FakeStepTime()),
            replicas,
            **options,
        )

    return make


@pytest.fixture
def run_fleet() -> Callable[..., Any]:
    """``run_fleet(trace, pools, …)``: the fleet after its last request has left; *faults* gets the fleet before."""

    def run(trace: Trace, pools: Any, faults: Any = None, **options: Any) -> Any:
        env = simpy.Environment()
        limits = np.where(trace.max_tokens > 0, trace.max_tokens, trace.output_length)
        fleet = Fleet(env, trace, limits, pools, **options)
        if faults is not None:
            faults(fleet)
        env.run(fleet.finished)
        check_conservation(fleet.records.build(), fleet.injected)
        assert fleet.injected == len(trace)
        return fleet, fleet.records.build()

    return run


@pytest.fixture
def random_trace() -> Callable[..., Trace]:
    """``random_trace(rng, n, …)``: bursts, shared prefixes, sessions that wait for their turn, some that do not fit."""

    def make(rng: np.random.Generator, n: int, *, load: float = 1.0, closed: bool = False) -> Trace:
        prompt, output = rng.integers(1, 90, n), rng.integers(1, 60, n)
        arrival = np.cumsum(rng.exponential(0.03 / load, n) * rng.integers(0, 2, n))
        group = rng.integers(-1, 3, n)
        tokens = np.where(group >= 0, np.minimum(rng.integers(1, 60, n), prompt), 0)
        kept = tokens > 0
        offsets = np.concatenate(([0], np.cumsum(kept))).astype(np.int64)
        session = rng.integers(-1, max(n // 4, 1), n)
        turn = np.array([int(np.sum(session[:i] == s)) for i, s in enumerate(session)], np.int64)
        turn[session < 0] = 0
        if closed:
            arrival = np.where(turn > 0, np.nan, arrival)
        return Trace.from_columns(
            arrival, prompt, output,
            max_tokens=output + rng.integers(0, 2, n) * rng.integers(0, 30, n),
            session=session, turn=turn, delay=rng.exponential(0.2, n),
            content=Runs(offsets, group[kept].astype(np.int64), tokens[kept].astype(np.int64)),
            tenant=[("a", "b", None)[i] for i in rng.integers(0, 3, n)],
            slo_class=[("chat", "batch", None)[i] for i in rng.integers(0, 3, n)],
        )  # fmt: skip

    return make
