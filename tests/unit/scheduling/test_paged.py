"""V0's policies on random load: counted decisions equal explicit ones, and nothing is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError
from simulator.scheduling.base import Batch
from simulator.scheduling.paged import PagedScheduler
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_027 import Vllm027
from simulator.scheduling.vllm_v0 import VllmV0


def limits(rng: random.Random, n: int) -> tuple[type[Any], dict[str, Any]]:
    """A policy with scarce blocks; preemption by what several samples allow."""
    length = rng.choice([64, 128, 300])
    common: dict[str, Any] = {
        "num_gpu_blocks": rng.choice([12, 20, 30, 60, 250]),
        "num_cpu_blocks": 100_000,
        "block_size": rng.choice([4, 16]),
        "max_num_seqs": rng.choice([4, 8, 32]),
        "max_model_len": length,
        "watermark": rng.choice([0.01, 0.05, 0.1]),
    }
    budget = max(length, rng.choice([64, 300, 1000]))
    kind = rng.choice(["0.2", "0.6", "0.6", "chunked"])
    if kind == "0.2":
        return Vllm027, common | {"max_num_batched_tokens": budget, "max_paddings": rng.choice([16, 256])}
    common |= {"enable_prefix_caching": rng.random() < 0.3, "preemption_mode": rng.choice([None, "swap"])}
    if kind == "chunked":
        return VllmV0, common | {
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": rng.choice([32, 64]),
        }
    if n == 1 and rng.random() < 0.3:
        common["preemption_mode"] = "recompute"
    return VllmV0, common | {
        "max_num_batched_tokens": budget,
        "policy": rng.choice(["fcfs", "priority"]),
        "num_scheduler_steps": rng.choice([1, 1, 4]),
        "scheduler_delay_factor": rng.choice([0.0, 0.0, 0.5]),
    }


def load(rng: random.Random, n: int, length: int) -> list[tuple[int, int, Request]]:
    """(iteration of arrival, output tokens, request)."""
    at, found = 0, []
    for i in range(rng.randint(1, 20)):
        at += rng.choice([0, 0, 1, 9, 40])
        prompt = rng.randint(1, rng.choice([length, length // 3]))
        shared = min(rng.choice([0, 0, 8, 33]), prompt)
        request = Request(
            f"r{i}",
            prompt,
            60,
            index=i,
            arrival_time=float(at),
            priority=rng.randint(0, 2),
            n=rng.randint(1, n),
            content=((rng.randint(1, 2), shared),) if shared else (),
        )
        found.append((at, rng.randint(1, 60), request))
    return found


def run(scheduler: PagedScheduler, arrivals: list[tuple[int, int, Request]], *, skip: bool) -> list[Any]:
    """Drive to the end; with *skip* the policy says itself how far a batch repeats."""
    arrivals = arrivals[::-1]
    outputs = {request.index: output for _, output, request in arrivals}
    ends: dict[Request, int] = {}
    log: list[Any] = []
    step = idle = 0
    while True:
        while arrivals and arrivals[-1][0] <= step:
            request = arrivals.pop()[2]
            try:
                scheduler.add(request, float(step))
            except CapacityError:
                log.append(f"{request.id} refused")
        batch = scheduler.schedule(float(step))
        if not isinstance(batch, Batch):
            if not arrivals:
                return log
            step = arrivals[-1][0]
            continue
        idle = 0 if batch.num_tokens or batch.rejected or batch.preempted else idle + 1
        assert idle < 2, "no progress"
        log.append((step, *decisions(scheduler, batch)))
        for request in batch.stalled:
            ends[request] += 1
        for request in batch.preempted:
            ends.pop(request, None)
        for request in batch.joining:
            ends[request] = batch.iteration + outputs[request.index] - request.generated
        if skip and batch.repeatable:
            limit = min(ends.values(), default=0) - batch.iteration + 1
            limit = min(limit, arrivals[-1][0] - step) if arrivals else limit
            for _ in range(scheduler.repeats(batch, limit) - 1 if limit > 1 else 0):
                step += 1
                scheduler.advance(batch, 1)
                log.append((step, *decisions(scheduler, batch)))
        ended = [request for request, end in ends.items() if end <= batch.iteration]
        for request in ended:
            del ends[request]
        scheduler.commit(batch, ended, float(step))
        step += 1


def decisions(scheduler: PagedScheduler, batch: Batch) -> tuple[Any, ...]:
    return (
        [(request.id, chunk, context) for request, chunk, context in batch.prefills],
        [request.id for request in batch.joining],
        (batch.num_decodes, batch.decode_context, batch.padded_tokens),
        [request.id for request in (*batch.stalled, *batch.preempted)],
        [request.id for request, _ in batch.rejected],
        (batch.blocks_copied, batch.blocks_swapped_in, batch.blocks_swapped_out),
        (scheduler.blocks_used, scheduler.swap.used, scheduler.num_running, scheduler.num_waiting),
        scheduler.waste(),
    )


@pytest.mark.parametrize("n", [1, 3])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counted_decisions_are_explicit_ones(n: int, seed: int) -> None:
    runs = []
    for explicit, skip in ((True, False), (False, False), (False, True)):
        rng = random.Random(seed)
        policy, options = limits(rng, n)
        scheduler = policy(explicit=explicit, **options)
        runs.append(run(scheduler, load(rng, n, options["max_model_len"]), skip=skip))
        assert (
            scheduler.blocks_used
            == scheduler.swap.used
            == scheduler.num_running
            == scheduler.num_waiting
            == 0
        )
        assert scheduler.waste() == (0, 0, 0, 0)
    assert runs[0] == runs[1]
    assert runs[0] == runs[2]


@pytest.mark.parametrize("policy", [Vllm027, VllmV0])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_cancelling_returns_every_block(policy: type[Any], seed: int) -> None:
    rng = random.Random(seed)
    scheduler = policy(
        num_gpu_blocks=20, block_size=4, max_num_seqs=8, max_model_len=64, max_num_batched_tokens=64
    )
    requests = [Request(f"r{i}", rng.randint(1, 40), 60, index=i, n=rng.randint(1, 3)) for i in range(6)]
    for request in requests:
        scheduler.add(request, 0.0)
    gone: set[Request] = set()
    for step in range(rng.randint(0, 60)):
        batch = scheduler.schedule(float(step))
        if isinstance(batch, Batch):
            gone.update(request for request, _ in batch.rejected)
            scheduler.commit(batch, [], float(step))
    for request in requests:
        if request not in gone:
            scheduler.cancel(request, 99.0)
    assert scheduler.blocks_used == scheduler.swap.used == scheduler.num_running == scheduler.num_waiting == 0
