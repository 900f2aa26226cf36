"""What every serving system must keep, whatever its policy.

Each system runs `SEEDS` random traces once as it is (`ran`); what must hold of a run, and what must be the same as
when every iteration is stepped or every sequence is looked at, is then read from these.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError
from simulator.results import FINISHED, REJECTED
from simulator.scheduling import Request, Wait
from simulator.scheduling.system import System, list_systems


def variants() -> list[System]:
    """Every system as it is, and with each of its great switches turned."""
    found = []
    for system in list_systems():
        found.append(system)
        for option, value in SWITCHES:
            if option in system.options:
                fixed = {**system.fixed, option: value}
                found.append(dataclasses.replace(system, name=f"{system.name}+{option}={value}", fixed=fixed))
    return found


SWITCHES = (
    ("async_scheduling", True),
    ("enable_prefix_caching", False),
    ("enable_chunked_prefill", False),
    ("preemption_mode", "swap"),
    ("num_scheduler_steps", 4),
    ("policy", "priority"),
    ("long_prefill_token_threshold", 16),
    ("disable_overlap_schedule", True),
    ("disable_radix_cache", True),
    ("enable_mixed_chunk", True),
    ("schedule_policy", "lpm"),
    ("router_token_ratio", 0.5),
    ("prefill_chunking", False),
)
systems = pytest.mark.parametrize(
    "system",
    [pytest.param(s, id=s.name) for s in variants()],
)
"""The tests of a system run in one process: they share its runs."""
SEEDS = range(10)
relaxed = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, int], Any]:
    return {}


@pytest.fixture
def ran(runs: dict[tuple[str, int], Any], run_small: Any, random_trace: Any) -> Callable[[System, int], Any]:
    """``ran(system, seed)``: a random trace and what `run_small` makes of it, at loads of 0.2 to 3."""

    def once(system: System, seed: int) -> Any:
        key = system.name, seed
        if key not in runs:
            rng = np.random.default_rng(seed)
            trace = random_trace(rng, 40, load=float(rng.uniform(0.2, 3)))
            runs[key] = trace, run_small(system, trace)
        return runs[key]

    return once


def drive(scheduler: Any, requests: list[Request], lengths: dict[Request, int], check: Any) -> None:
    """Run *requests*, three arriving every few iterations, until all are done; *check* sees every batch."""
    waiting, alive, step = list(requests), set(), 0
    inflight: deque[Any] = deque()
    tokens = dict.fromkeys(requests, 0)
    while waiting or alive or inflight:
        if step % 4 == 0:
            for request in waiting[:3]:
                try:
                    scheduler.add(request, float(step))
                    alive.add(request)
                except CapacityError:
                    pass
            del waiting[:3]
        step += 1
        assert step < 20_000, "no progress"
        while len(inflight) < scheduler.depth:
            batch = scheduler.schedule(float(step))
            if batch is None or isinstance(batch, Wait):
                stuck = not (waiting or not alive or inflight or isinstance(batch, Wait))
                assert not stuck, f"idle with {len(alive)} requests alive"
                break
            alive.difference_update(request for request, _ in batch.rejected)
            check(batch, alive)
            inflight.append(batch)
        if inflight:
            batch = inflight.popleft()
            for request in (*(batch.decodes or ()), *batch.joining):
                tokens[request] += 1
            ended = [r for r in alive if tokens[r] >= lengths[r]]
            scheduler.commit(batch, ended, float(step))
            alive.difference_update(ended)


def some_requests(rng: np.random.Generator, n: int) -> tuple[list[Request], dict[Request, int]]:
    requests, lengths = [], {}
    for i in range(n):
        prompt, output = int(rng.integers(1, 80)), int(rng.integers(1, 40))
        content = ((int(rng.integers(3)), int(rng.integers(1, prompt + 1))),) if rng.random() < 0.6 else ()
        request = Request(
            f"r{i}",
            prompt,
            output,
            index=i,
            arrival_time=float(i),
            priority=int(rng.integers(3)),
            content=content,
        )
        requests.append(request)
        lengths[request] = output
    return requests, lengths


@systems
@relaxed
@given(seed=seeds)
def test_every_request_ends_and_every_block_returns(system: System, make_small: Any, seed: int) -> None:
    requests, lengths = some_requests(np.random.default_rng(seed), 25)
    scheduler = make_small(system, explicit=True)

    def check(batch: Any, alive: set[Request]) -> None:
        assert 0 <= scheduler.blocks_used <= scheduler.num_blocks
        assert scheduler.num_running + scheduler.num_waiting == len(alive)
        told = (
            batch.prefills
            or batch.joining
            or batch.preempted
            or batch.stalled
            or batch.rejected
            or batch.failed
        )
        assert not (batch.repeatable and told), "a driver looks only at batches that do not repeat"
        rows = [request for request, tokens in batch.rows() if tokens > 0]
        assert len(rows) == len(set(rows)), "a sequence twice in one iteration"
        if batch.repeatable:
            others = (
                batch.prefills,
                batch.joining,
                batch.preempted,
                batch.stalled,
                batch.rejected,
                batch.failed,
            )
            assert not any(others), "a repeatable batch does nothing but decode"
        budget = getattr(scheduler, "max_num_batched_tokens", None)
        if budget is not None and system.name.startswith("vllm"):
            assert batch.num_tokens <= budget

    drive(scheduler, requests, lengths, check)
    assert scheduler.blocks_used == 0
    assert scheduler.num_running == scheduler.num_waiting == 0


@systems
def test_skipping_makes_the_same_decisions_as_stepping(system: System, ran: Any, run_small: Any) -> None:
    for seed in SEEDS:
        trace, (skipped, fast, _) = ran(system, seed)
        stepped, slow, _ = run_small(system, trace, stepped=True)
        for name in ("status", "num_preemptions", "cached_tokens", "output_length"):
            assert np.array_equal(getattr(skipped, name), getattr(stepped, name)), (name, seed)
        for name in ("first_scheduled_time", "first_token_time", "finish_time"):
            np.testing.assert_allclose(getattr(skipped, name), getattr(stepped, name), rtol=1e-9, atol=0)
        assert fast[0].series.sum("iterations") == slow[0].series.sum("iterations")
        used = [run[0].series.mean("kv_blocks_used") for run in (fast, slow)]
        assert used[0] == pytest.approx(
            used[1], rel=0.03
        )  # blocks are whole, their growth is taken for a line
        assert fast[0].itl.total == slow[0].itl.total
        assert fast[0].itl.mean == pytest.approx(slow[0].itl.mean, rel=1e-8, nan_ok=True)


@systems
def test_counting_makes_the_same_decisions_as_looking_one_by_one(
    system: System, ran: Any, run_small: Any, monkeypatch: Any
) -> None:
    counted = [ran(system, seed) for seed in SEEDS]
    original = System.scheduler
    monkeypatch.setattr(System, "scheduler", lambda self, **kw: original(self, **{**kw, "explicit": True}))
    for seed, (trace, (records, _, _)) in zip(SEEDS, counted, strict=True):
        explicit, _, _ = run_small(system, trace)
        for name in ("status", "num_preemptions", "cached_tokens"):
            assert np.array_equal(getattr(records, name), getattr(explicit, name)), (name, seed)
        np.testing.assert_allclose(records.finish_time, explicit.finish_time, rtol=1e-9)


@systems
def test_tokens_are_conserved(system: System, ran: Any) -> None:
    for seed in SEEDS:
        trace, (records, replicas, _) = ran(system, seed)
        done = records.status == FINISHED
        assert np.all(done | (records.status == REJECTED)), seed
        assert np.array_equal(records.output_length[done], trace.output_length[done])
        assert replicas[0].itl.total == int((trace.output_length[done] - 1).sum())
        delivered = trace.output_length[done].sum()  # the row that a sequence ends in front of yields none
        assert replicas[0].series.sum("output_tokens") == delivered
        assert np.all(records.first_token_time[done] <= records.finish_time[done])
        assert np.all(records.arrival_time[done] <= records.first_token_time[done])


@systems
def test_a_run_is_a_function_of_its_input(system: System, ran: Any, run_small: Any) -> None:
    trace, (first, _, _) = ran(system, SEEDS[0])
    second = run_small(system, trace)[0]
    assert first.finish_time.tobytes() == second.finish_time.tobytes()
    assert first.cached_tokens.tobytes() == second.cached_tokens.tobytes()


@systems
@relaxed
@given(seed=seeds)
def test_cancelling_returns_everything(system: System, make_small: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests, _ = some_requests(rng, 12)
    scheduler = make_small(system, explicit=True)
    alive, tokens = [], dict.fromkeys(requests, 0)
    for request in requests:
        try:
            scheduler.add(request, 0.0)
            alive.append(request)
        except CapacityError:
            continue
    for step in range(int(rng.integers(0, 12))):
        batch = scheduler.schedule(float(step))
        if batch is None or isinstance(batch, Wait):
            break
        for request in (*(batch.decodes or ()), *batch.joining):
            tokens[request] += 1
        gone = {request for request, _ in batch.rejected}
        ended = [r for r in alive if tokens[r] >= r.max_tokens]
        scheduler.commit(batch, ended, float(step))
        alive = [request for request in alive if request not in gone and request not in ended]
    for request in alive:
        scheduler.cancel(request, 99.0)
    assert scheduler.blocks_used == 0
    assert scheduler.num_running == scheduler.num_waiting == 0
