"""vLLM 0.6: both modes, priority, delay, several steps per decision, prefix cache, swapping."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v0 import VllmV0


def make(num_gpu_blocks: int = 100, **options: Any) -> VllmV0:
    return VllmV0(**{"num_gpu_blocks": num_gpu_blocks, "max_model_len": 2048, "explicit": True} | options)


def add(scheduler: VllmV0, *prompts: int, n: int = 1, content: Any = (), at: float = 0.0) -> list[Request]:
    requests = [Request(f"r{i}", p, 500, index=i, arrival_time=at + i, n=n) for i, p in enumerate(prompts)]
    for request in requests:
        request.content = content
        scheduler.add(request, request.arrival_time)
    return requests


def occupy(scheduler: VllmV0, blocks: int) -> Request:
    """Somebody else holds *blocks* blocks."""
    other = Request("other", 1, 1)
    scheduler.blocks.grow(other, blocks * scheduler.block_size)
    return other


def step(scheduler: VllmV0, *ended: Request, now: float = 0.0) -> Batch:
    batch = scheduler.schedule(now)
    assert isinstance(batch, Batch)
    scheduler.commit(batch, ended, now)
    return batch


def chunks(batch: Batch) -> dict[str, int]:
    return {request.id: chunk for request, chunk, _ in batch.prefills}


def test_prompts_are_not_padded() -> None:
    scheduler = make(100, max_num_batched_tokens=2560)
    add(scheduler, 512, 512, 32)
    assert chunks(step(scheduler)) == {"r0": 512, "r1": 512, "r2": 32}


def test_prompts_and_decodes_never_mix_without_chunking() -> None:
    scheduler = make()
    add(scheduler, 40)
    step(scheduler)
    scheduler.add(Request("late", 50, 9, arrival_time=1.0), 1.0)
    batch = step(scheduler)
    assert chunks(batch) == {"late": 50}
    assert batch.num_decodes == 0
    assert step(scheduler).num_decodes == 2


def test_decodes_come_first_and_prompts_fill_the_budget() -> None:
    scheduler = make(500, enable_chunked_prefill=True, max_num_batched_tokens=512, max_num_seqs=64)
    add(scheduler, *[16] * 10)
    step(scheduler)
    scheduler.add(Request("long", 1200, 9, arrival_time=99.0), 99.0)
    seen = [step(scheduler) for _ in range(4)]
    assert [chunks(batch).get("long", 0) for batch in seen] == [502, 502, 196, 0]
    assert [batch.num_decodes for batch in seen] == [10, 10, 10, 11]


def test_a_prompt_in_progress_is_the_first_victim() -> None:
    scheduler = make(40, enable_chunked_prefill=True, max_num_batched_tokens=32, max_num_seqs=8)
    first, second = add(scheduler, 16, 100)
    step(scheduler)
    scheduler.blocks.take(scheduler.blocks.num_free - 1)
    batch = step(scheduler)  # the decode takes the last block, the prompt asks for one it does not need
    assert batch.decodes == [first]
    assert batch.preempted == [second]
    assert (second.computed, second.target) == (0, 100)


def test_the_default_budget_depends_on_chunking() -> None:
    assert make(enable_chunked_prefill=True, max_num_seqs=64).max_num_batched_tokens == 512
    assert make(max_model_len=1024).max_num_batched_tokens == 2048


def test_a_more_urgent_request_takes_the_place_of_a_less_urgent_one() -> None:
    scheduler = make(100, policy="priority", max_num_seqs=2)
    calm = [Request(f"calm{i}", 16, 99, arrival_time=float(i), priority=5) for i in range(2)]
    urgent = Request("urgent", 16, 99, arrival_time=9.0, priority=1)
    for request in calm:
        scheduler.add(request, 0.0)
    step(scheduler)
    scheduler.add(urgent, 9.0)
    batch = step(scheduler)
    assert batch.preempted == [calm[1]]
    assert batch.decodes == [calm[0]]
    assert list(scheduler.waiting) == [urgent, calm[1]]
    assert chunks(step(scheduler)) == {"urgent": 16}


def test_equal_priority_does_not_preempt() -> None:
    scheduler = make(100, policy="priority", max_num_seqs=1)
    first, second = add(scheduler, 16, 16)
    step(scheduler)
    assert step(scheduler).decodes == [first]
    assert list(scheduler.waiting) == [second]


def test_prompts_wait_for_a_multiple_of_the_last_prompt_step() -> None:
    scheduler = make(scheduler_delay_factor=2.0)
    add(scheduler, 16)
    step(scheduler, now=10.0)
    late = Request("late", 16, 9, arrival_time=11.0)
    scheduler.add(late, 11.0)
    assert step(scheduler, now=11.5).num_decodes == 1  # the prompt took 1.5 s: late waits 3 s
    assert step(scheduler, now=14.0).num_decodes == 1
    assert chunks(step(scheduler, now=14.1)) == {"late": 16}


def test_a_decision_for_several_steps_reserves_them_and_keeps_those_that_end() -> None:
    scheduler = make(num_scheduler_steps=4)
    first, _second = add(scheduler, 15, 15)
    step(scheduler)
    assert scheduler.blocks_used == 2
    assert step(scheduler, first).num_decodes == 2  # tokens 16 to 19: a block more each
    assert scheduler.blocks_used == 4
    scheduler.add(Request("late", 16, 9), 0.0)
    assert [step(scheduler).num_decodes for _ in range(2)] == [2, 2]
    assert scheduler.num_running == 1
    step(scheduler)
    assert scheduler.blocks_used == 2
    assert chunks(step(scheduler)) == {"late": 16}


def test_a_decision_ends_when_nobody_is_left_in_it() -> None:
    scheduler = make(num_scheduler_steps=4)
    (request,) = add(scheduler, 15)
    step(scheduler)
    step(scheduler, request)
    assert (scheduler.blocks_used, scheduler.num_running) == (0, 0)
    assert scheduler.schedule(0.0) is None


def test_cached_blocks_are_shared_and_not_computed() -> None:
    scheduler = make(enable_prefix_caching=True)
    first, second = add(scheduler, 64, 64, content=((1, 64),))
    batch = step(scheduler)
    assert [chunk for _, chunk, _ in batch.prefills] == [
        64,
        64,
    ]  # the blocks are shared before they are filled
    assert scheduler.blocks_used == 4
    step(scheduler, first, second)
    third = Request("third", 70, 9, content=((1, 64),))
    scheduler.add(third, 1.0)
    assert step(scheduler).prefills == [(third, 6, 64)]
    step(scheduler, third)
    again = Request("again", 64, 9, content=((1, 64),))
    scheduler.add(again, 2.0)
    assert step(scheduler).prefills == [(again, 16, 48)]  # the last block is always computed


def test_swapped_samples_come_back_with_blocks_of_their_own() -> None:
    scheduler = make(14, watermark=0.0)
    _first, _second = add(scheduler, 60, 60, n=2)
    step(scheduler)
    step(scheduler)  # 3 shared full blocks, a copied one each: 5
    assert scheduler.blocks_used == 10
    other = occupy(scheduler, 3)
    batch = step(scheduler)
    assert batch.blocks_swapped_out == 8
    assert scheduler.swap.used == 8
    scheduler.blocks.free(other)
    batch = step(scheduler)
    assert batch.blocks_swapped_in == 8
    assert scheduler.blocks_used == 5 + 8


def test_a_swapped_request_returns_before_any_prompt() -> None:
    scheduler = make(30, preemption_mode="swap", watermark=0.0)
    _first, second = add(scheduler, 32, 32)
    step(scheduler)
    other = occupy(scheduler, 25)
    batch = step(scheduler)
    assert batch.preempted == [second]
    assert batch.blocks_swapped_out == 2
    scheduler.add(Request("late", 16, 9), 5.0)
    scheduler.blocks.free(other)
    batch = step(scheduler)
    assert batch.blocks_swapped_in == 2
    assert batch.prefills == [(second, 1, 32)]
    assert batch.joining == [second]
    assert scheduler.decoding.generated(second) == 2
    assert chunks(step(scheduler)) == {"late": 16}


def test_a_prompt_that_outgrows_its_chunks_room_is_rejected_instead_of_restarting_for_ever() -> None:
    scheduler = make(
        12,
        block_size=4,
        enable_chunked_prefill=True,
        max_num_batched_tokens=32,
        max_num_seqs=8,
        max_model_len=64,
    )
    add(scheduler, 46)
    batch = step(scheduler)
    assert [request.id for request, _ in batch.rejected] == ["r0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "lifo"}, "policy 'lifo': must be fcfs or priority"),
        ({"preemption_mode": "drop"}, "preemption_mode 'drop': must be swap or recompute"),
        ({"max_num_batched_tokens": 512}, "without enable_chunked_prefill at least max_model_len 2048"),
        ({"num_scheduler_steps": 2, "enable_chunked_prefill": True}, "not with enable_chunked_prefill"),
        ({"max_num_batched_tokens": 100, "enable_chunked_prefill": True}, "at least max_num_seqs 256"),
        ({"num_cpu_blocks": -1}, "num_cpu_blocks -1: must not be negative"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(CapacityError, match="3000 tokens exceeds max_model_len 2048"):
        make(enable_chunked_prefill=True, max_num_seqs=64).add(Request("r", 3000, 5), 0.0)
