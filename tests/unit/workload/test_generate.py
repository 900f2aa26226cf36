"""Synthetic workloads."""

import numpy as np
import pytest

from simulator.errors import ConfigurationError
from simulator.workload import OUTPUT_ID_BASE, Lengths, Trace, common_prefix, gamma_arrivals, generate_trace

TEN, FIVE = Lengths.parse("10"), Lengths.parse("5")
SPREAD = Lengths.parse("uniform:low=1,high=1000")


def test_the_seed_decides_everything() -> None:
    def make(seed: int) -> Trace:
        return generate_trace(50, request_rate=2, input_length=SPREAD, output_length=SPREAD, seed=seed)

    a, b, c = make(1), make(1), make(2)
    assert np.array_equal(a.arrival_time, b.arrival_time) and np.array_equal(a.input_length, b.input_length)
    assert not np.array_equal(a.input_length, c.input_length)


def test_lengths_do_not_move_the_arrivals() -> None:
    a = generate_trace(50, request_rate=2, input_length=SPREAD, output_length=SPREAD)
    b = generate_trace(50, request_rate=2, input_length=TEN, output_length=FIVE)
    assert np.array_equal(a.arrival_time, b.arrival_time)


def test_any_arrival_process() -> None:
    trace = generate_trace(
        20_000, arrivals=lambda n, g: gamma_arrivals(n, 3.0, 0.25, g), input_length=TEN, output_length=FIVE
    )
    gaps = np.diff(trace.arrival_time)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.06)


def test_sessions_accumulate_their_context() -> None:
    trace = generate_trace(
        200,
        request_rate=1,
        input_length=SPREAD,
        output_length=SPREAD,
        turns=Lengths.parse("uniform:low=1,high=4"),
        think_time=30,
        seed=4,
    )
    before = trace.previous_turn()
    assert np.array_equal(np.isnan(trace.arrival_time), before >= 0)
    for i in np.flatnonzero(before >= 0):
        j = before[i]
        assert trace.turn[i] == trace.turn[j] + 1 and trace.session[i] == trace.session[j]
        assert trace.input_length[i] > trace.input_length[j] + trace.output_length[j]
        assert common_prefix(trace.content, int(i), int(j)) == trace.input_length[j]
        entries = slice(trace.content_offsets[i], trace.content_offsets[i + 1])
        at = np.flatnonzero(trace.content_ids[entries] == OUTPUT_ID_BASE + j)
        assert trace.content_tokens[entries][at].tolist() == [trace.output_length[j]]
        assert trace.content_tokens[entries][: at[0]].sum() == trace.input_length[j]
        assert trace.content_tokens[entries].sum() == trace.input_length[i]


def test_think_times_are_exponential() -> None:
    trace = generate_trace(
        20_000, request_rate=1, input_length=TEN, output_length=FIVE, turns=Lengths.parse("10"), think_time=30
    )
    delays = trace.delay[trace.turn > 0]
    assert not trace.delay[trace.turn == 0].any()
    assert delays.mean() == pytest.approx(30, rel=0.03) and delays.std() == pytest.approx(30, rel=0.03)


def test_shared_prefixes_come_in_groups() -> None:
    trace = generate_trace(
        600,
        request_rate=1,
        input_length=TEN,
        output_length=FIVE,
        num_prefixes=3,
        prefix_length=Lengths.parse("256"),
    )
    assert set(trace.input_length) == {266}
    firsts = trace.content_ids[trace.content_offsets[:-1]]
    groups, counts = np.unique(firsts, return_counts=True)
    assert len(groups) == 3 and counts.min() > 150
    same = np.flatnonzero(firsts == firsts[0])
    assert common_prefix(trace.content, int(same[0]), int(same[1])) == 256


def test_pairs_from_another_trace() -> None:
    source = Trace.from_columns([0.0, 0.0], [10, 999], [1, 7])
    trace = generate_trace(100, request_rate=1, lengths_from=source)
    assert set(zip(trace.input_length.tolist(), trace.output_length.tolist())) == {(10, 1), (999, 7)}


def test_closed_loop() -> None:
    trace = generate_trace(10, input_length=TEN, output_length=FIVE, max_concurrency=3)
    assert trace.max_concurrency == 3 and not trace.arrival_time.any()
    assert trace.limit(5).max_concurrency == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"num_prompts": 0},
        {"request_rate": -1.0},
        {"input_length": None},
        {"lengths_from": Trace.from_columns([0.0], [1], [1])},
        {"num_prefixes": 2},
        {"prefix_length": TEN},
        {"num_prefixes": -1, "prefix_length": TEN},
        {"think_time": -1.0},
        {"max_concurrency": 0},
    ],
)
def test_contradictions(changes: dict) -> None:
    options = {"num_prompts": 5, "input_length": TEN, "output_length": FIVE, **changes}
    with pytest.raises(ConfigurationError):
        generate_trace(**options)
