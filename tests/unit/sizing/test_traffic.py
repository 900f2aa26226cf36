from __future__ import annotations

import numpy as np
import pytest

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError
from simulator.simulation import simulate
from simulator.sizing import part_of, resampled
from simulator.sizing.traffic import check_open
from simulator.workload import OUTPUT_ID_BASE, Lengths, Runs, Trace, generate_trace


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


def test_sessions_start_elsewhere_as_a_whole() -> None:
    """Turns that wait for each other stay together, in their order, with what they quote of each other."""
    trace = Trace.from_columns(
        [0.0, 2.0, np.nan, 3.0, 9.0, np.nan], [10, 20, 30, 40, 50, 60], [1] * 6,
        session=[-1, 7, 7, -1, 8, 8], turn=[0, 0, 1, 0, 0, 1], delay=[0, 0, 1, 0, 0, 2],
        content=Runs(np.array([0, 0, 0, 1, 1, 1, 2]), OUTPUT_ID_BASE + np.array([1, 4]), np.array([1, 1])),
    )  # fmt: skip
    orders = set()
    for seed in range(20):
        fresh = resampled(trace, seed)
        assert fresh.duration < 12 and fresh.arrival_time[0] == 0
        assert np.isnan(fresh.arrival_time).tolist() == (fresh.turn > 0).tolist()
        previous = fresh.previous_turn()
        for row in np.flatnonzero(fresh.turn > 0).tolist():
            assert fresh.input_length[previous[row]] == fresh.input_length[row] - 10
            assert fresh.content_ids[fresh.content_offsets[row]] == OUTPUT_ID_BASE + previous[row]
        orders.add(tuple(fresh.input_length.tolist()))
    assert len(orders) == 3


def test_a_closed_loop_or_a_handful_of_requests_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="closed loop"):
        check_open(some_trace().with_max_concurrency(4))
    with pytest.raises(ConfigurationError, match="99 requests"):
        check_open(some_trace(99))
