"""transformers' continuous batching: what its walk over the candidates does to hand-worked cases."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.hf_blocks import SharedBlocks
from simulator.scheduling.hf_continuous import HfContinuous
from simulator.scheduling.request import Request


def small(**limits: Any) -> HfContinuous:
    return HfContinuous(
        **{"num_blocks": 10, "page_size": 4, "max_batch_tokens": 16, "safety_margin": 0.0} | limits
    )


def first(log: list[tuple[Any, ...]], event: str, name: str) -> Any:
    return next(entry for entry in log if entry[1:3] == (event, name))


def test_who_does_not_fit_is_passed_over(play: Any) -> None:
    log = play(
        small(max_batch_tokens=64),
        [(0, Request("a", 20, 5), 5), (1, Request("big", 24, 1), 1), (1, Request("tiny", 3, 1), 1)],
    )
    assert first(log, "prefill", "tiny")[0] == 1
    assert first(log, "prefill", "big")[0] == 5  # when the first has ended


def test_only_the_chunk_is_asked_for_not_the_prompt(play: Any) -> None:
    log = play(small(), [(0, Request("a", 23, 2), 2), (1, Request("b", 30, 1), 1)])
    assert first(log, "prefill", "b")[3:5] == (9, 0)


def test_below_the_safety_margin_nothing_starts_beside_running_work(play: Any) -> None:
    arrivals = [(0, Request("a", 16, 6), 6), (1, Request("b", 4, 1), 1)]
    assert first(play(small(safety_margin=0.6), arrivals), "prefill", "b")[0] == 1
    arrivals = [(0, Request("a", 16, 6), 6), (1, Request("b", 4, 1), 1)]
    assert first(play(small(safety_margin=0.7), arrivals), "prefill", "b")[0] == 6


def test_a_prefix_is_shared_from_the_step_after_it_was_computed(play: Any) -> None:
    def cached(arrival: int) -> int:
        late = Request("late", 12, 2, content=((7, 12),))
        play(small(), [(0, Request("early", 12, 9, content=((7, 12),)), 9), (arrival, late, 2)])
        return late.cached_tokens

    assert cached(0) == 0
    assert cached(1) == 8  # whole blocks of all but the last token


def test_a_prompt_that_ends_with_its_prefill_leaves_nothing(play: Any) -> None:
    late = Request("late", 12, 1, content=((7, 12),))
    play(small(), [(0, Request("early", 12, 1, content=((7, 12),)), 1), (1, late, 1)])
    assert late.cached_tokens == 0


def test_the_newest_starved_request_starts_over_and_the_door_closes(play: Any) -> None:
    scheduler = small(num_blocks=4)
    arrivals = [(0, Request("a", 8, 8), 8), (0, Request("b", 8, 4), 4), (2, Request("c", 2, 1), 1)]
    log = play(scheduler, arrivals)
    assert [entry for entry in log if entry[1] == "preempt"] == [(1, "preempt", "b", 1)]
    assert first(log, "prefill", "c")[0] == 8  # though its block was free from the second step on
    assert [entry[3] for entry in log if entry[1:3] == ("prefill", "b")] == [8, 9]


def test_the_host_keeps_the_progress_of_a_victim(play: Any) -> None:
    scheduler = small(num_blocks=4, num_cpu_blocks=2)
    log = play(scheduler, [(0, Request("a", 8, 8), 8), (0, Request("b", 8, 4), 4)])
    assert [entry[3:5] for entry in log if entry[1:3] == ("prefill", "b")] == [(8, 0), (1, 8)]
    assert scheduler.host.used == 0


def test_asynchronous_batching_computes_a_token_too_many(play: Any) -> None:
    log = play(small(use_async_batching=True), [(0, Request("a", 4, 3), 3), (0, Request("b", 37, 1), 1)])
    starts = [entry[0] for entry in log if entry[1:3] == ("prefill", "b")]
    assert first(log, "end", "a")[0] == 2
    assert max(starts) >= 3


@pytest.mark.parametrize(("in_advance", "cached"), [(False, 8), (True, 4)])
def test_asynchronous_batching_forgets_to_hash_a_chunk(play: Any, in_advance: bool, cached: int) -> None:
    late = Request("late", 12, 1, content=((7, 12),))
    arrivals = [(0, Request("early", 12, 9, content=((7, 12),)), 9), (3, late, 1)]
    play(small(max_batch_tokens=8, use_async_batching=in_advance), arrivals)
    assert late.cached_tokens == cached


def test_nothing_stays_behind_on_the_host(play: Any) -> None:
    blocks = HfContinuous(num_blocks=4, page_size=4, num_cpu_blocks=2, safety_margin=0.0)
    play(blocks, [(0, Request("a", 8, 8), 8), (0, Request("b", 8, 4), 4), (0, Request("c", 4, 6), 6)])
    assert (blocks.host.used, blocks.blocks_used) == (0, 0)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"use_async_batching": True},
        {"scheduler_type": "prefill_first"},
        {"safety_margin": 0.3, "max_requests_per_batch": 3},
        {"num_cpu_blocks": 6, "use_async_batching": True},
        {"allow_block_sharing": False, "max_blocks_per_request": 2},
    ],
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), blocks=st.integers(21, 40))
def test_counting_decides_as_looking_at_every_request(
    play: Any, crowd: Any, limits: dict[str, Any], seed: int, blocks: int
) -> None:
    logs = [
        play(small(**limits, num_blocks=blocks, explicit=explicit), crowd(random.Random(seed)), skip=skip)
        for explicit, skip in ((True, False), (False, False), (False, True))
    ]
    assert logs[0] == logs[1] == logs[2]


def test_a_block_computed_twice_is_kept_once() -> None:
    blocks = SharedBlocks(10, 4)
    one, two = (Request(name, 8, 1, content=((1, 8),)) for name in "ab")
    for request in (one, two):
        blocks.take(2)
        request.num_blocks = 2
        blocks.register(request, 2)
    assert (blocks.used, blocks.num_shared) == (2, 2)
    blocks.release(one, keep=True)
    assert (blocks.used, blocks.cached) == (2, 0)
    blocks.release(two, keep=True)
    assert (blocks.used, blocks.cached, blocks.free) == (0, 2, 8)
    assert len(blocks.match(one, 7)) == 1
    assert blocks.evict() == 2
    assert blocks.match(one, 7) == []
    assert blocks.free == 10


def test_what_can_never_run_is_refused() -> None:
    with pytest.raises(CapacityError, match="41 tokens leaves no room"):
        small().add(Request("a", 41, 1), 0.0)
    with pytest.raises(ConfigurationError, match="scheduler_type 'lifo'"):
        small(scheduler_type="lifo")
    with pytest.raises(ConfigurationError, match=r"safety_margin 1\.5"):
        small(safety_margin=1.5)
    with pytest.raises(ConfigurationError, match="max_batch_tokens 0"):
        small(max_batch_tokens=0)
