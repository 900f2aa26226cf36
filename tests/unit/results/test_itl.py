"""Pooled gaps: exact to the nanosecond against numpy on the expanded list, bounded beyond."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.results import InterTokenLatency

GAPS = st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 50)), min_size=1, max_size=60)


@given(GAPS, st.floats(0, 100))
def test_percentiles_are_those_of_the_expanded_list(gaps: list[tuple[int, int]], p: float) -> None:
    itl = InterTokenLatency()
    for nanoseconds, count in gaps:
        itl.add(nanoseconds * 1e-9, count)
    every = np.repeat([ns * 1e-9 for ns, _ in gaps], [count for _, count in gaps])
    assert itl.total == len(every)
    assert itl.percentile(p) == pytest.approx(np.percentile(every, p), rel=1e-9, abs=1e-9)
    assert itl.mean == pytest.approx(every.mean(), rel=1e-12)
    assert itl.std == pytest.approx(every.std(), rel=1e-9, abs=1e-12)
    assert itl.max == every.max()


def test_many_buffers_merge_to_the_same_answer() -> None:
    gaps = np.round(np.random.default_rng(1).lognormal(-4, 0.5, 400_000), 6)
    itl = InterTokenLatency()
    for part in np.array_split(gaps, 37):
        itl.add_many(part, 3)
    assert itl.total == 3 * len(gaps)
    for p in (0, 1, 50, 99, 99.99, 100):
        assert itl.percentile(p) == pytest.approx(np.percentile(np.repeat(gaps, 3), p), abs=1e-9)


def test_beyond_the_bound_bins_keep_more_than_four_digits() -> None:
    gaps = np.random.default_rng(2).lognormal(-4, 1.0, 300_000)
    itl = InterTokenLatency(max_distinct=10_000)
    itl.add_many(gaps[:150_000], 1)
    itl.add_many(gaps[150_000:], 1)
    values, counts = itl.distribution()
    assert counts.sum() == len(gaps)
    assert len(values) < len(gaps)
    for p in np.linspace(0.5, 99.9, 60):
        assert itl.percentile(p) == pytest.approx(np.percentile(gaps, p), rel=1.6e-5)  # half a bin of 2⁻¹⁵
    assert itl.mean == pytest.approx(gaps.mean(), rel=1e-12)
    assert itl.max == gaps.max()


def test_memory_is_bounded_by_the_bins() -> None:
    itl = InterTokenLatency(max_distinct=1000)
    for seed in range(20):
        itl.add_many(np.random.default_rng(seed).uniform(0.01, 0.02, 100_000), 1)
    assert len(itl.distribution()[0]) <= 2**15 + 2  # one octave


@settings(max_examples=30)
@given(GAPS, GAPS)
def test_merging_replicas_pools_their_gaps(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    together, left, right = InterTokenLatency(), InterTokenLatency(), InterTokenLatency()
    for itl, gaps in ((left, a), (right, b), (together, a + b)):
        for nanoseconds, count in gaps:
            itl.add(nanoseconds * 1e-9, count)
    left.merge(right)
    assert left.total == together.total and left.max == together.max
    assert left.mean == pytest.approx(together.mean, rel=1e-12)
    assert left.median == together.median


def test_nothing_added_is_not_a_number() -> None:
    itl = InterTokenLatency()
    assert itl.total == 0
    assert all(math.isnan(value) for value in (itl.mean, itl.std, itl.median, itl.max))


def test_a_gap_that_nobody_saw_does_not_count() -> None:
    itl = InterTokenLatency()
    itl.add(5.0, 0)
    itl.add(0.5, 1)
    assert (itl.total, itl.max, itl.percentile(100)) == (1, 0.5, 0.5)


def test_clear_forgets_the_warmup() -> None:
    itl = InterTokenLatency()
    itl.add(5.0, 3)
    itl.clear()
    itl.add(0.25, 1)
    assert (itl.total, itl.mean, itl.max) == (1, 0.25, 0.25)


def test_large_counts_and_hour_long_gaps() -> None:
    itl = InterTokenLatency()
    itl.add(7200.0, 1)  # preempted and forgotten for two hours
    itl.add(0.5, 3 << 20)
    itl.add(0.25, 1 << 20)
    assert itl.total == (4 << 20) + 1
    assert (itl.percentile(0), itl.percentile(24.9), itl.percentile(25.1), itl.max) == (
        0.25,
        0.25,
        0.5,
        7200.0,
    )
    assert itl.percentile(100) == 7200.0
