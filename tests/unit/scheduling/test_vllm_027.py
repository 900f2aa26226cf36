"""vLLM 0.2.7: padding rules, one free block per sequence, sharing that survives swapping, beams."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.groups import SequenceGroup
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_027 import Vllm027


def make(num_gpu_blocks: int = 100, **options: Any) -> Vllm027:
    return Vllm027(**{"num_gpu_blocks": num_gpu_blocks, "max_model_len": 2048, "explicit": True} | options)


def add(scheduler: Vllm027, *prompts: int, n: int = 1) -> list[Request]:
    requests = [Request(f"r{i}", p, 500, index=i, arrival_time=float(i), n=n) for i, p in enumerate(prompts)]
    for request in requests:
        scheduler.add(request, request.arrival_time)
    return requests


def occupy(scheduler: Vllm027, blocks: int) -> Request:
    """Somebody else holds *blocks* blocks."""
    other = Request("other", 1, 1)
    scheduler.blocks.grow(other, blocks * scheduler.block_size)
    return other


def step(scheduler: Vllm027, *ended: Request) -> Batch:
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    scheduler.commit(batch, ended, 0.0)
    return batch


def prompts(batch: Batch) -> list[str]:
    return [request.id for request, _, _ in batch.prefills]


@pytest.mark.parametrize(("free", "admitted"), [(11, ["r0"]), (10, [])])
def test_the_watermark_stops_the_head_and_nobody_passes_it(free: int, admitted: list[str]) -> None:
    scheduler = make(100)
    scheduler.blocks.take(100 - free)
    add(scheduler, 160, 16)
    assert prompts(step(scheduler)) == admitted


def test_padding_stops_a_short_prompt_behind_long_ones() -> None:
    scheduler = make(100, max_num_batched_tokens=2560, max_model_len=2048)
    add(scheduler, 512, 512, 32)
    batch = step(scheduler)
    assert prompts(batch) == ["r0", "r1"]
    assert batch.padded_tokens == 0
    assert prompts(step(scheduler)) == ["r2"]


def test_a_prompt_batch_is_a_rectangle() -> None:
    scheduler = make(200, max_num_batched_tokens=2048, max_paddings=1000)
    add(scheduler, 600, 400, 600, 100)  # 4 rows of 600 exceed 2048
    batch = step(scheduler)
    assert prompts(batch) == ["r0", "r1", "r2"]
    assert batch.padded_tokens == 3 * 600 - 1600


def test_one_free_block_is_wanted_even_where_the_last_one_has_room() -> None:
    scheduler = make(30)
    a, b, c = add(scheduler, 17, 17, 17)
    step(scheduler)
    scheduler.blocks.take(scheduler.blocks.num_free)
    batch = step(scheduler)
    assert batch.preempted == [c]
    assert batch.decodes == [a, b]


def test_victims_return_to_the_queue_in_order_of_arrival() -> None:
    scheduler = make(30)
    a, b, c = add(scheduler, 16, 16, 16)
    step(scheduler)
    scheduler.blocks.take(scheduler.blocks.num_free)
    batch = step(scheduler)
    assert batch.preempted == [c, b]
    assert list(scheduler.waiting) == [b, c]
    assert batch.decodes == [a]


def test_a_recomputed_prompt_holds_what_was_generated() -> None:
    scheduler = make(30)
    (a,) = add(scheduler, 20)
    for _ in range(4):  # the prompt's token and three more
        step(scheduler)
    other = occupy(scheduler, scheduler.blocks.num_free)
    assert step(scheduler).preempted == [a]
    scheduler.blocks.free(other)
    assert step(scheduler).prefills == [(a, 24, 0)]


@pytest.mark.parametrize(("prompt", "copies", "blocks"), [(20, 3, 5), (32, 0, 6)])
def test_samples_copy_a_partly_filled_block_at_their_second_token(
    prompt: int, copies: int, blocks: int
) -> None:
    scheduler = make(100)
    add(scheduler, prompt, n=4)
    batch = step(scheduler)
    assert len(batch.joining) == 4
    assert scheduler.blocks_used == 2
    assert step(scheduler).blocks_copied == copies
    assert scheduler.blocks_used == blocks
    assert step(scheduler).blocks_copied == 0


def test_samples_take_seats_before_they_exist() -> None:
    scheduler = make(100, max_num_seqs=5)
    first, _second = add(scheduler, 16, 16, n=3)
    assert prompts(step(scheduler)) == ["r0"]
    members = list(first.group.live)
    assert step(scheduler, members[0]).num_decodes == 3
    assert prompts(step(scheduler)) == ["r1"]  # two left, three wanted


def test_a_group_swaps_what_it_holds_and_keeps_sharing() -> None:
    scheduler = make(14, watermark=0.0)
    _first, second = add(scheduler, 64, 64, n=2)
    step(scheduler)
    step(scheduler)  # 4 shared and 2 own blocks each
    assert scheduler.blocks_used == 12
    other = occupy(scheduler, 2)
    batch = step(scheduler)
    assert batch.blocks_swapped_out == 6
    assert [request.group.leader for request in batch.preempted] == [second, second]
    assert (scheduler.swap.used, scheduler.num_running, len(scheduler.swapped)) == (6, 1, 1)
    scheduler.blocks.free(other)
    batch = step(scheduler)
    assert batch.blocks_swapped_in == 6
    assert scheduler.blocks_used == 12
    assert sum(request.group.leader is second for request in batch.joining) == 2


def test_no_prompt_while_something_is_swapped() -> None:
    scheduler = make(14, watermark=0.0)
    _first, _ = add(scheduler, 64, 64, n=2)
    step(scheduler)
    step(scheduler)
    scheduler.blocks.take(2)
    step(scheduler)
    scheduler.add(Request("late", 1, 5, arrival_time=9.0), 9.0)
    batch = step(scheduler)
    assert not batch.prefills
    assert batch.num_decodes == 2


def test_a_full_swap_space_ends_the_engine() -> None:
    scheduler = make(14, num_cpu_blocks=5, watermark=0.0)
    add(scheduler, 64, 64, n=2)
    step(scheduler)
    step(scheduler)
    scheduler.blocks.take(2)
    with pytest.raises(CapacityError, match="swap space is full: 6 blocks wanted, 5 of 5 free"):
        scheduler.schedule(0.0)


def test_what_never_fits_is_rejected_and_nothing_else_runs_in_that_step() -> None:
    scheduler = make(10)
    add(scheduler, 200, 16)
    batch = step(scheduler)
    assert [request.id for request, _ in batch.rejected] == ["r0"]
    assert "never fit in 10 blocks" in batch.rejected[0][1]
    assert prompts(batch) == ["r1"]


def test_beams_fork_and_are_dropped_by_the_executor() -> None:
    scheduler = make(50)
    request = Request("beam", 20, 500)
    request.group = SequenceGroup(request, 2, beam=True)
    scheduler.add(request, 0.0)
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    second = scheduler.fork(request)
    scheduler.commit(batch, [], 0.0)
    assert scheduler.blocks_used == 2
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    assert (batch.num_decodes, batch.blocks_copied, scheduler.blocks_used) == (2, 1, 3)
    scheduler.drop(request)  # both survivors stem from the second
    third = scheduler.fork(second)
    scheduler.commit(batch, [], 0.0)
    assert scheduler.blocks_used == 2
    assert (scheduler.decoding.generated(third), scheduler.decoding.tokens(third)) == (2, 21)
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    assert batch.blocks_copied == 1
    scheduler.commit(batch, [second, third], 0.0)
    assert (scheduler.blocks_used, scheduler.num_running) == (0, 0)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least max_model_len 2048"):
        make(max_num_batched_tokens=512)
    with pytest.raises(CapacityError, match="n 9: at most max_num_seqs 8"):
        make(max_num_seqs=8).add(Request("r", 5, 5, n=9), 0.0)
