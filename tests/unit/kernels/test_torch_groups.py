"""The CPU form of decode attention computes sequences of similar length together; what comes out does not change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.kernels.torch_attention import (  # noqa: E402
    LEAST_FILLED,
    SHORT,
    _decode_padded,
    decode_attention,
    similar_lengths,
)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40))
def test_groups_are_a_partition_into_similar_lengths(lens: list[int]) -> None:
    groups = similar_lengths(lens)
    assert sorted(row for group in groups for row in group) == list(range(len(lens)))
    for group in groups:
        sizes = [lens[row] for row in group]
        assert max(sizes) <= SHORT or min(sizes) >= LEAST_FILLED * max(sizes)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=8), st.sampled_from([0, 32]))
def test_groups_do_not_change_the_result(lens: list[int], window: int) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 128, 16, 2, 8).unbind()
    table = torch.randperm(128)[: 13 * len(lens)].reshape(len(lens), 13).int()
    q, ends = torch.randn(len(lens), 4, 8), torch.tensor(lens, dtype=torch.int32)
    out = torch.full_like(q, float("nan"))
    longest = max(lens)
    decode_attention(out, q, keys, values, table, ends, 0.3, max_context=longest, sliding_window=window)
    torch.testing.assert_close(out, _decode_padded(q, keys, values, table, ends, 0.3, longest, window))
