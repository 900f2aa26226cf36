"""The run over time: exact averages and maxima in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.results import StepSeries
from simulator.results.points import COLUMNS, LEVELS, SUMMED
from simulator.results.series import CHUNK

SIZES = st.one_of(st.integers(1, 50), st.sampled_from([CHUNK, CHUNK + 1, 2 * CHUNK + 5, 4 * CHUNK]))


def random_rows(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0, 100, (n, len(COLUMNS)))
    rows[:, 1] = rng.uniform(0, 0.1, n)
    rows[:, 2] = rng.integers(1, 5, n)
    rows[:, 0] = np.concatenate(([0.0], np.cumsum(rows[:-1, 1] + rng.choice([0, 0.5], n - 1))))
    return rows


def filled(rows: np.ndarray, **options: int) -> StepSeries:
    series = StepSeries(num_gpu_blocks=1000, block_size=16, **options)
    for row in rows:
        series.append(*row)
    return series


@settings(max_examples=15, deadline=None)
@given(n=SIZES, max_points=st.sampled_from([10, 100, 20_000]), seed=st.integers(0, 99))
def test_averages_maxima_and_totals_are_exact_whatever_the_resolution(
    n: int, max_points: int, seed: int
) -> None:
    rows = random_rows(n, seed)
    series = filled(rows, max_points=max_points)
    span = np.diff(np.append(rows[:, 0], rows[-1, 0] + rows[-1, 1]))
    for level in LEVELS:
        column = rows[:, COLUMNS.index(level)]
        assert series.mean(level) == pytest.approx((column * span).sum() / span.sum(), rel=1e-9)
        assert series.maximum(level) == column.max()
    for amount in SUMMED:
        assert series.sum(amount) == pytest.approx(rows[:, COLUMNS.index(amount)].sum(), rel=1e-12)
    assert series.sum("batch_iterations") == pytest.approx((rows[:, 2] * rows[:, 3]).sum())
    assert series.span() == pytest.approx(span.sum(), rel=1e-9)
    assert series.end_time() == pytest.approx(rows[-1, 0] + rows[-1, 1])


def test_points_are_bounded_and_cover_the_run() -> None:
    series = filled(random_rows(10 * CHUNK, 0), max_points=50)
    points = series.points()
    assert len(points["time"]) <= 2 * 50 + CHUNK // 50
    assert np.all(np.diff(points["time"]) >= 0)
    assert points["time"][1:] == pytest.approx((points["time"] + points["span"])[:-1], rel=1e-9)


def test_reading_does_not_disturb_what_follows() -> None:
    rows = random_rows(2 * CHUNK, 5)
    read, unread = filled(rows[: CHUNK + 7]), filled(rows[: CHUNK + 7])
    read.mean("num_running"), read.to_frame(), read.tokens_per_second()
    for series in (read, unread):
        for row in rows[CHUNK + 7 :]:
            series.append(*row)
    assert read.mean("num_running") == unread.mean("num_running")
    assert read.to_frame().equals(unread.to_frame())


def test_head_keeps_the_first_rows_as_they_are() -> None:
    rows = random_rows(3 * CHUNK, 3)
    assert np.array_equal(filled(rows).head, rows[:CHUNK])


def test_levels_hold_until_the_next_row() -> None:
    series = StepSeries(num_gpu_blocks=10, block_size=16)
    series.append(0.0, 1.0, 10, 4, 0, 4, 0, 40, 8, 0)
    series.append(1.0, 0.0, 0, 0, 0, 0, 0, 0, 2, 0)  # idle
    series.append(4.0, 1.0, 1, 1, 0, 0, 64, 1, 5, 0)
    assert series.mean("num_running") == pytest.approx((4 * 1 + 0 * 3 + 1 * 1) / 5)
    assert series.mean("kv_blocks_used") == pytest.approx((8 * 1 + 2 * 3 + 5 * 1) / 5)


TICKS = 1024  # binary fractions of a second: sums of them are exact


@settings(max_examples=40, deadline=None)
@given(
    decisions=st.lists(
        st.tuples(st.integers(0, 2000), st.integers(1, 50), st.integers(1, 8), st.integers(1, 500)),
        min_size=1,
    )
)
def test_tokens_fall_into_the_second_of_their_iteration(decisions: list[tuple[int, int, int, int]]) -> None:
    series = StepSeries(num_gpu_blocks=10, block_size=16)
    expected: dict[int, int] = {}
    now = 0
    for idle, iterations, batch, step in decisions:
        now += idle
        duration = iterations * step / TICKS
        series.append(now / TICKS, duration, iterations, batch, 0, batch, 0, batch * iterations, 1, 0)
        for _ in range(iterations):
            now += step
            expected[now // TICKS] = expected.get(now // TICKS, 0) + batch
    counts = series.tokens_per_second()
    assert {second: round(count, 6) for second, count in enumerate(counts) if count} == expected
