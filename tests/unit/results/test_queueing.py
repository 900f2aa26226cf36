"""Little's law over random runs, and the queue counted request by request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import Deployment, simulate
from simulator.cluster import ClusterSpec
from simulator.results import RecordsBuilder
from simulator.results.queueing import mean_waiting, most_waiting
from simulator.workload import Lengths, generate_trace

SMALL = {"model": "llama-3.1-8b", "gpu": "l40s", "num_gpu_blocks": 700}
BLOCKS = {"vllm": 700, "vllm-0.6": 700, "sglang": 11_200, "tgi": 11_200}
"""Each 11,200 tokens: two of the longest requests and a few short ones."""


@settings(max_examples=10, deadline=None)
@given(
    st.integers(20, 150),
    st.floats(0.5, 100.0),
    st.sampled_from(sorted(BLOCKS)),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_the_queue_and_the_wait_agree_by_littles_law(
    n: int, rate: float, system: str, replicas: int, seed: int
) -> None:
    """L = λ W with preemptions, full caches and idle times; every request finishes within the run."""
    trace = generate_trace(
        n,
        request_rate=rate,
        input_length=Lengths.parse("lognormal:mean=500,sigma=1,max=4000"),
        output_length=Lengths.parse("lognormal:mean=100,sigma=1,max=900"),
        seed=seed,
    )
    small = SMALL | {"num_gpu_blocks": BLOCKS[system]}
    values = simulate(trace, Deployment.of(**small, system=system, num_replicas=replicas)).summary.values
    assert values["completed"] == n
    arrivals, wait = n / float(values["duration"] or 0), float(values["mean_queue_time_ms"] or 0) / 1000
    assert values["mean_num_waiting"] == pytest.approx(arrivals * wait, rel=1e-9, abs=1e-12)
    assert float(values["max_num_waiting"] or 0) >= float(values["mean_num_waiting"] or 0)


def test_who_waits_at_the_router_waits() -> None:
    """A cluster whose replicas take one request at a time: the others are in nobody's queue but the router's."""
    spec = ClusterSpec.of(
        pools={"all": {"deployment": {**SMALL, "max_num_seqs": 1}, "replicas": 2}}, router="least-outstanding"
    )
    trace = generate_trace(
        60, request_rate=50.0, input_length=Lengths.parse("100"), output_length=Lengths.parse("50"), seed=0
    )
    values = simulate(trace, spec).summary.values
    arrivals, wait = 60 / float(values["duration"] or 0), float(values["mean_queue_time_ms"] or 0) / 1000
    assert values["mean_num_waiting"] == pytest.approx(arrivals * wait)
    assert int(values["max_num_waiting"] or 0) > 40


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9) | st.none()), min_size=1, max_size=30),
    st.integers(0, 20),
    st.integers(1, 30),
)
def test_the_queue_is_what_counting_it_moment_by_moment_gives(
    requests: list[tuple[int, int | None]], start: int, length: int
) -> None:
    """Whole seconds: between two of them nothing changes. None: never scheduled."""
    builder, end = RecordsBuilder(len(requests)), start + length
    for i, (arrival, wait) in enumerate(requests):
        builder.arrival_time[i] = arrival
        builder.first_scheduled_time[i] = np.nan if wait is None else arrival + wait
    records = builder.build()
    there = [
        sum(arrival <= second and (wait is None or second < arrival + wait) for arrival, wait in requests)
        for second in range(start, end)
    ]
    assert mean_waiting(records, start, end) == pytest.approx(sum(there) / length)
    assert most_waiting(records, start, end) == max(there)
