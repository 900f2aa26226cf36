"""Into how many parts a decode launch is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from engine.kernels.splits import MAX_SPLITS, MIN_CHUNK, choose_splits

SLOTS = 264  # 132 multiprocessors, two blocks each


def test_one_long_sequence_fills_the_device():
    splits = choose_splits(1, 8, 131_072, SLOTS)
    assert 8 * splits >= 0.9 * SLOTS


def test_a_full_device_is_not_split_further():
    assert choose_splits(SLOTS, 1, 1024, SLOTS) == 1


def test_a_last_wave_that_is_almost_empty_is_evened_out():
    """265 blocks on 264 slots take two waves: parts shorten the second."""
    assert choose_splits(265, 1, 16_384, SLOTS) > 1


def test_one_long_sequence_among_short_ones_is_shared_out():
    """64 sequences of up to 16k tokens: whole, the longest would outlast the average of a skewed batch."""
    assert choose_splits(64, 8, 16_384, SLOTS) >= 4


def test_short_contexts_are_not_cut():
    assert choose_splits(1, 1, MIN_CHUNK, SLOTS) == 1


@given(
    batch=st.integers(1, 512),
    kv_heads=st.integers(1, 16),
    context=st.integers(1, 200_000),
    slots=st.integers(1, 600),
)
def test_splits_are_never_shorter_than_the_least_chunk(batch, kv_heads, context, slots):
    splits = choose_splits(batch, kv_heads, context, slots)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or context // splits >= MIN_CHUNK
