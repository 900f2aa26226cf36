"""DeepSpeed-FastGen: what Dynamic SplitFuse does to hand-worked cases."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.request import Request
from simulator.scheduling.splitfuse import SplitFuse


def small(**limits: Any) -> SplitFuse:
    return SplitFuse(**{"num_blocks": 20, "kv_block_size": 4, "max_ragged_batch_size": 16} | limits)


def test_a_long_prompt_is_cut_to_fill_768_tokens_beside_the_decodes(play: Any) -> None:
    scheduler = SplitFuse(num_blocks=100)
    decodes = [(0, Request(f"d{i}", 8, 100), 100) for i in range(10)]
    log = play(scheduler, [*decodes, (5, Request("long", 2000, 1), 1)])
    chunks = [event[3:] for event in log if event[1] == "prefill" and event[2] == "long"]
    assert chunks == [(758, 0, 10), (758, 758, 10), (484, 1516, 10)]


def test_blocks_of_an_ended_sequence_come_back_two_passes_later(play: Any) -> None:
    scheduler = small(num_blocks=4)
    log = play(scheduler, [(0, Request("a", 12, 3), 3), (0, Request("b", 8, 1), 1)])
    assert (2, "end", "a") in log
    assert [event[0] for event in log if event[2] == "b"] == [3, 3]


def test_a_prompt_that_does_not_fit_as_a_whole_blocks_those_behind_it(play: Any) -> None:
    scheduler = small(num_blocks=6)
    log = play(
        scheduler, [(0, Request("a", 12, 9), 9), (1, Request("big", 20, 1), 1), (1, Request("tiny", 2, 1), 1)]
    )
    started = {event[2]: event[0] for event in log if event[1] == "prefill"}
    assert started["tiny"] >= started["big"] > 8


def test_a_decode_without_a_free_block_misses_its_turn(play: Any) -> None:
    scheduler = small(num_blocks=3)
    log = play(scheduler, [(0, Request("a", 4, 6), 6), (0, Request("b", 4, 2), 2)])
    assert (1, "stall", "b") in log
    assert (0, "prefill", "a", 4, 0, 0) in log


def test_the_last_one_starts_over_when_nothing_moves(play: Any) -> None:
    scheduler = small(num_blocks=2)
    log = play(scheduler, [(0, Request("a", 3, 3), 3), (0, Request("b", 3, 3), 3)])
    assert [event for event in log if event[1] == "preempt"] == [(2, "preempt", "b", 2)]
    assert [event[2] for event in log if event[1] == "end"] == ["a", "b"]
    assert any(event[1:4] == ("prefill", "b", 5) for event in log)  # its prompt and two generated tokens


def test_no_more_sequences_hold_kv_than_are_tracked(play: Any) -> None:
    scheduler = small(max_tracked_sequences=2)
    log = play(scheduler, [(i, Request(f"r{i}", 4, 5), 5) for i in range(3)])
    assert min(event[0] for event in log if event[2] == "r2") > min(e[0] for e in log if e[1] == "end")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    blocks=st.integers(20, 40),
    tracked=st.sampled_from([3, 2048]),
    seqs=st.sampled_from([3, 512]),
)
def test_counting_decides_as_looking_at_every_sequence(
    play: Any, crowd: Any, seed: int, blocks: int, tracked: int, seqs: int
) -> None:
    limits = {"num_blocks": blocks, "max_tracked_sequences": tracked, "max_ragged_sequence_count": seqs}
    logs = [
        play(small(**limits, explicit=explicit), crowd(random.Random(seed)), skip=skip)
        for explicit, skip in ((True, False), (False, False), (False, True))
    ]
    assert logs[0] == logs[1] == logs[2]


def test_what_can_never_run_is_refused() -> None:
    with pytest.raises(CapacityError, match="81 tokens exceeds 80"):
        small().add(Request("a", 81, 1), 0.0)
    with pytest.raises(CapacityError, match="31 tokens exceeds 30"):
        small(max_length=30).add(Request("a", 31, 1), 0.0)
    with pytest.raises(ConfigurationError, match="max_ragged_batch_size 0"):
        small(max_ragged_batch_size=0)
