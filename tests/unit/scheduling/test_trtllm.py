"""TensorRT-LLM: what its capacity and micro-batch passes do to hand-worked cases."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.trtllm import MAX_UTILIZATION, NO_EVICT, STATIC, TensorRtLlm
from simulator.scheduling.trtllm_blocks import ReusePool
from simulator.scheduling.trtllm_chunks import cut_prompts


def small(**limits: Any) -> TensorRtLlm:
    return TensorRtLlm(**{"num_blocks": 20, "tokens_per_block": 4, "max_num_tokens": 64} | limits)


def prefills(log: list[tuple[Any, ...]], name: str) -> list[tuple[int, int, int]]:
    """Iteration, chunk and context of each prefill of a request."""
    return [(entry[0], entry[3], entry[4]) for entry in log if entry[1:3] == ("prefill", name)]


@pytest.mark.parametrize(("policy", "started"), [(NO_EVICT, 3), (STATIC, 3), (MAX_UTILIZATION, 4)])
def test_what_is_reserved_decides_how_many_start(policy: str, started: int) -> None:
    scheduler = TensorRtLlm(num_blocks=100, capacity_scheduler_policy=policy)
    for i, (prompt, output) in enumerate([(512, 512)] * 3 + [(128, 32)]):
        scheduler.add(Request(f"r{i}", prompt, output), 0.0)
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    assert len(batch.prefills) == started


def test_no_evict_stops_at_the_first_misfit_and_never_pauses(play: Any) -> None:
    arrivals = [(0, Request("a", 40, 20), 20), (0, Request("b", 20, 20), 2), (0, Request("c", 4, 4), 2)]
    log = play(small(), arrivals)
    assert prefills(log, "b")[0][0] == prefills(log, "c")[0][0] == 20
    assert not [entry for entry in log if entry[1] == "preempt"]


def test_maximum_utilization_pauses_the_last_started(play: Any) -> None:
    arrivals = [(0, Request("a", 8, 9), 9), (0, Request("b", 8, 4), 4)]
    log = play(small(num_blocks=5, capacity_scheduler_policy=MAX_UTILIZATION), arrivals)
    assert [entry for entry in log if entry[1] == "preempt"] == [(1, "preempt", "b", 1)]
    assert prefills(log, "b")[1][1:] == (5, 4)  # it finds its first block; the other one was taken meanwhile


def test_a_static_batch_waits_until_nobody_generates(play: Any) -> None:
    arrivals = [(0, Request("a", 4, 5), 5), (1, Request("b", 4, 1), 1)]
    assert prefills(play(small(capacity_scheduler_policy=STATIC), arrivals), "b") == [(5, 4, 0)]


def test_an_equal_prompt_waits_for_the_one_being_computed(play: Any) -> None:
    shared = ((3, 16),)
    arrivals = [(0, Request(name, 18, 2, content=shared), 2) for name in "ab"]
    log = play(small(), arrivals)
    assert prefills(log, "a") == [(0, 18, 0)]
    assert prefills(log, "b") == [(1, 2, 16)]
    log = play(
        small(enable_block_reuse=False), [(0, Request(name, 18, 2, content=shared), 2) for name in "ab"]
    )
    assert prefills(log, "b") == [(0, 18, 0)]


def test_without_chunks_the_first_prompt_over_budget_ends_the_pass(play: Any) -> None:
    arrivals = [(0, Request(name, prompt, 3), 3) for name, prompt in (("a", 40), ("b", 30), ("c", 4))]
    log = play(small(num_blocks=40), arrivals)
    assert [prefills(log, name)[0][0] for name in "abc"] == [0, 1, 1]


def test_chunks_of_first_come_first_served_and_of_equal_progress() -> None:
    assert cut_prompts("FIRST_COME_FIRST_SERVED", [100, 50, 8], 92, 16) == [80, 0, 8]
    assert cut_prompts("EQUAL_PROGRESS", [100, 50, 8], 92, 16) == [48, 32, 8]


@settings(max_examples=50, deadline=None)
@given(
    policy=st.sampled_from(["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"]),
    remaining=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    budget=st.integers(1, 500),
    unit=st.sampled_from([1, 16, 64]),
)
def test_chunks_keep_the_budget_and_end_on_units(
    policy: str, remaining: list[int], budget: int, unit: int
) -> None:
    chunks = cut_prompts(policy, remaining, budget, unit)
    assert sum(chunks) <= budget
    for chunk, tokens in zip(chunks, remaining, strict=True):
        assert 0 <= chunk <= tokens
        assert chunk == tokens or chunk % unit == 0
    if sum(remaining) <= budget:
        assert chunks == remaining


def test_the_oldest_free_block_is_forgotten_first_with_all_below_it() -> None:
    pool = ReusePool(4, 4, reuse=True)
    request = Request("a", 12, 1, content=((1, 12),))
    assert pool.allocate(request) == 0
    pool.release(request, 12)
    assert (pool.free, pool.cached) == (4, 3)
    pool.take(1)  # the block that never held anything
    longer = Request("b", 14, 1, content=((1, 12),))
    assert pool.missing(longer) is None
    pool.take(1)  # the last block of the prompt
    assert pool.cached == 2
    assert pool.missing(longer) is not None


@pytest.mark.parametrize("policy", [NO_EVICT, MAX_UTILIZATION, STATIC])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"enable_block_reuse": False, "max_batch_size": 3},
        {"enable_chunked_prefill": True, "max_num_tokens": 16},
        {"enable_chunked_prefill": True, "max_num_tokens": 12, "context_chunking_policy": "EQUAL_PROGRESS"},
        {"two_step_lookahead": True},
    ],
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), blocks=st.integers(25, 40))
def test_counting_decides_as_looking_at_every_request(
    play: Any, crowd: Any, policy: str, limits: dict[str, Any], seed: int, blocks: int
) -> None:
    limits = {"max_num_tokens": 100, "capacity_scheduler_policy": policy, "num_blocks": blocks} | limits
    logs = [
        play(small(**limits, explicit=explicit), crowd(random.Random(seed)), skip=skip)
        for explicit, skip in ((True, False), (False, False), (False, True))
    ]
    assert logs[0] == logs[1] == logs[2]


def test_what_can_never_run_is_refused() -> None:
    with pytest.raises(CapacityError, match="80 tokens leaves no room for output in 80 tokens"):
        small(max_num_tokens=100).add(Request("a", 80, 1), 0.0)
    with pytest.raises(CapacityError, match="65 tokens exceeds max_num_tokens 64"):
        small().add(Request("a", 65, 1), 0.0)
    with pytest.raises(ConfigurationError, match="capacity_scheduler_policy 'LIFO'"):
        small(capacity_scheduler_policy="LIFO")
    with pytest.raises(ConfigurationError, match="context_chunking_policy 'LIFO'"):
        small(context_chunking_policy="LIFO")
