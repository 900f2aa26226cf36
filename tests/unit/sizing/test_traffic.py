from __future__ import annotations

import numpy as np
import pytest

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError
from simulator.simulation import simulate
from simulator.sizing import part_of, resampled
from simulator.sizing.traffic import check_open
from simulator.workload import Lengths, Trace, generate_trace


def some_trace(n: int = 1200, rate: float = 20.0) -> Trace:
    lengths = Lengths.parse("uniform:low=50,high=600"), Lengths.parse("uniform:low=5,high=60")
    return generate_trace(n, request_rate=rate, input_length=lengths[0], output_length=lengths[1], seed=2)


def test_a_part_behaves_as_those_replicas_of_the_whole_do() -> None:
    """Round-robin replicas do not meet: the first two of four finish their requests when two alone would."""
    trace, deployment = some_trace(), Deployment.of(model="llama-3.1-8b", gpu="l4", num_replicas=4)
    part, some = part_of(trace, 4, 600)
    assert some == 2
    whole = simulate(trace, deployment)
    alone = simulate(part, deployment.model_copy(update={"num_replicas": 2}))
    mine = np.arange(len(trace)) % 4 < 2
    np.testing.assert_allclose(alone.records.finish_time, whole.records.finish_time[mine], rtol=1e-9)


def test_a_small_trace_is_taken_whole() -> None:
    trace = some_trace(200)
    assert part_of(trace, 3, 10_000) == (trace, 3)


def test_fresh_traffic_has_the_rate_the_lengths_and_the_burstiness_of_the_trace() -> None:
    trace = some_trace(4000)
    fresh = resampled(trace, 7, 8000)
    assert len(fresh) == 8000
    assert fresh.request_rate == pytest.approx(trace.request_rate, rel=1e-9)
    assert fresh.input_length.mean() == pytest.approx(trace.input_length.mean(), rel=0.05)
    gaps = [np.diff(one.arrival_time) for one in (trace, fresh)]
    assert gaps[1].std() / gaps[1].mean() == pytest.approx(gaps[0].std() / gaps[0].mean(), rel=0.1)
    assert (gaps[1] >= 0).all()
    again = resampled(trace, 7, 8000)
    np.testing.assert_array_equal(again.arrival_time, fresh.arrival_time)
    assert not np.array_equal(resampled(trace, 8, 8000).input_length, fresh.input_length)


def test_neighbours_stay_neighbours() -> None:
    trace = some_trace(1000)
    fresh = resampled(trace, 1)
    pairs = set(zip(trace.input_length[:-1].tolist(), trace.input_length[1:].tolist()))
    kept = [pair in pairs for pair in zip(fresh.input_length[:-1].tolist(), fresh.input_length[1:].tolist())]
    assert np.mean(kept) > 0.9  # but for the seams between blocks


def test_shared_prompts_are_not_copied() -> None:
    trace = generate_trace(
        500, request_rate=5, input_length=Lengths.parse("uniform:low=50,high=90"),
        output_length=Lengths.parse("uniform:low=5,high=9"),
        num_prefixes=3, prefix_length=Lengths.parse("uniform:low=20,high=30"), seed=1,
    )  # fmt: skip
    fresh = resampled(trace, 3, 5000)
    assert len(fresh) == len(trace)
    assert sorted(fresh.input_length.tolist()) == sorted(trace.input_length.tolist())


def test_a_closed_loop_or_a_handful_of_requests_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="closed loop"):
        check_open(some_trace().with_max_concurrency(4))
    with pytest.raises(ConfigurationError, match="99 requests"):
        check_open(some_trace(99))
