"""LightLLM's router and backend: latency of admission, pacing of prefills, the peak estimate and pausing."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.lightllm import Lightllm
from simulator.scheduling.lightllm_peak import PeakEstimate, peak_tokens
from simulator.scheduling.request import Request


class Loop:
    """Drives a scheduler by single iterations, or over as many as it says repeat, and logs what happens."""

    def __init__(self, scheduler: Lightllm, lengths: dict[Request, int], skip: bool = False) -> None:
        self.scheduler, self.lengths, self.skip = scheduler, lengths, skip
        self.log: list[tuple[Any, ...]] = []
        self.now = 0
        self.ends: dict[Request, int] = {}

    def run(self, arrivals: list[tuple[int, Request]]) -> list[tuple[Any, ...]]:
        queue = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
        while True:
            while queue and queue[0][0] <= self.now:
                self.scheduler.add(queue.popleft()[1], self.now)
            batch = self.scheduler.schedule(self.now)
            if batch is None and not queue:
                return self.log
            if isinstance(batch, Batch):
                self.execute(batch, queue[0][0] if queue else 1 << 30)
            self.now += 1
            assert self.now < 100_000, "no progress"

    def execute(self, batch: Batch, next_arrival: int) -> None:
        for request, chunk, context in batch.prefills:
            self.log.append((self.now, "prefill", request.id, chunk, context, batch.num_decodes))
        for request in batch.preempted:
            self.ends.pop(request, None)
            self.log.append((self.now, "pause", request.id, request.generated))
        for request in batch.joining:
            self.ends[request] = batch.iteration + self.lengths[request] - request.generated
        if self.skip and batch.repeatable:
            limit = min([end - batch.iteration for end in self.ends.values()] + [next_arrival - self.now - 1])
            n = self.scheduler.repeats(batch, limit + 1) - 1
            if n > 0:
                self.scheduler.advance(batch, n)
                self.now += n
        ended = [request for request, end in self.ends.items() if end <= batch.iteration]
        for request in ended:
            del self.ends[request]
            self.log.append((self.now, "end", request.id))
        self.scheduler.commit(batch, ended, self.now)
        pool = self.scheduler.pool
        assert 0 <= self.scheduler.blocks_used <= pool.used <= pool.capacity


def make(**options: Any) -> Lightllm:
    return Lightllm(**({"max_total_token_num": 500, "chunked_prefill_size": 64} | options))


def requests_of(rows: list[dict[str, Any]]) -> tuple[list[tuple[int, Request]], dict[Request, int]]:
    arrivals, lengths = [], {}
    for i, row in enumerate(rows):
        shared = min(row["shared"], row["prompt"])
        request = Request(
            f"r{i}",
            row["prompt"],
            row["output"] + row["spare"],
            index=i,
            content=((row["group"], shared),) if shared else (),
            ignore_eos=row["spare"] == 0,
        )
        arrivals.append((row["at"], request))
        lengths[request] = row["output"]
    return arrivals, lengths


rows = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 60),
            "prompt": st.integers(1, 120),
            "output": st.integers(1, 60),
            "spare": st.sampled_from([0, 0, 7, 40]),
            "shared": st.integers(0, 90),
            "group": st.integers(0, 2),
        }
    ),
    min_size=1,
    max_size=18,
)
options = st.fixed_dictionaries(
    {
        "router_token_ratio": st.sampled_from([0.0, 0.0, 0.5, 0.9]),
        "router_max_new_token_len": st.sampled_from([1, 16, 1024]),
        "chunked_prefill_size": st.sampled_from([16, 64]),
        "running_max_req_size": st.sampled_from([3, 1000]),
        "disable_dynamic_prompt_cache": st.booleans(),
        "disable_aggressive_schedule": st.booleans(),
        "max_total_token_num": st.sampled_from([420, 900]),
    }
)


@settings(max_examples=120, deadline=None)
@given(rows=rows, options=options)
def test_counting_and_leaping_decide_as_looking_at_every_request_does(
    rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    logs, states = [], []
    for explicit, skip in ((True, False), (False, False), (False, True)):
        arrivals, lengths = requests_of(rows)
        scheduler = make(**options, explicit=explicit)
        logs.append(Loop(scheduler, lengths, skip).run(arrivals))
        cache = scheduler.pool.cache
        states.append((scheduler.pool.free, cache.tokens if cache else 0))
        assert scheduler.pool.used == scheduler.blocks_used == 0
        assert scheduler.num_running == scheduler.num_waiting == 0
    assert logs[0] == logs[1] == logs[2]
    assert states[0] == states[1] == states[2]
    assert sum(kind == "end" for _, kind, *_ in logs[0]) == len(rows)


def test_a_prompt_starts_two_iterations_after_it_was_planned() -> None:
    scheduler = make()
    scheduler.add(Request("a", 100, 3), 0)
    seen = []
    for _ in range(4):
        batch = Batch()
        scheduler.iterate(batch)
        seen.append((len(scheduler.planned), len(scheduler.running), batch.num_tokens))
        scheduler.commit(batch, [], 0)
    assert seen == [(1, 0, 0), (0, 1, 0), (0, 1, 64), (0, 1, 36)]


def test_an_idle_router_looks_again_after_ten_milliseconds() -> None:
    scheduler = make()
    scheduler.add(Request("a", 10, 3), 5.0)
    wait = scheduler.schedule(5.0)
    assert isinstance(wait, Wait)
    assert wait.until == pytest.approx(5.010)
    batch = scheduler.schedule(5.010)
    assert isinstance(batch, Batch)
    assert [request.id for request in batch.joining] == ["a"]


def test_beside_decodes_a_prompt_waits_six_iterations() -> None:
    first, second = Request("a", 10, 100), Request("b", 10, 100)
    log = Loop(make(), {first: 40, second: 5}).run([(0, first), (5, second)])
    prefills = [(now, name) for now, kind, name, *_ in log if kind == "prefill"]
    planned, merged = 5, 6
    # the credit of the new batch is spent while the request is only looked up; then six waits
    assert prefills[1] == (merged + 6 + 1, "b")
    assert prefills[1][0] - planned == 8


def test_requests_that_run_together_do_not_share_a_prefix() -> None:
    a, b, c = (Request(name, 60, 5, content=((1, 50),)) for name in "abc")
    Loop(make(), {a: 5, b: 5, c: 5}).run([(0, a), (0, b), (40, c)])
    assert (a.cached_tokens, b.cached_tokens, c.cached_tokens) == (0, 0, 50)


def test_the_peak_is_the_worst_moment_of_everybody_running_to_the_end() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        n = int(rng.integers(1, 8))
        held, left = rng.integers(1, 50, n), rng.integers(1, 30, n)
        moments = [(held + t)[left >= t].sum() for t in range(1, 31)]
        assert peak_tokens(held, left) == max(moments)


@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=8),
    held=st.integers(1, 60),
    left=st.integers(1, 60),
    capacity=st.integers(50, 500),
)
def test_the_wait_for_room_is_that_of_trying_at_every_iteration(
    rows: list[tuple[int, int]], held: int, left: int, capacity: int
) -> None:
    estimate = PeakEstimate()
    for start, end in rows:
        estimate.join(start, end)
    limit = min((end for _, end in rows), default=20)
    tried = (i for i in range(limit) if estimate.with_others(i, [(held, left)]) < capacity)
    assert estimate.iterations_until(0, held, left, capacity, limit) == next(tried, limit)


def test_pausing_takes_the_last_and_the_cache_may_still_have_it() -> None:
    """Two prompts of 200 fit into 500 tokens with the 16 outputs that are expected at first, not with all."""
    options = {"router_token_ratio": 0.95, "router_max_new_token_len": 16, "max_total_token_num": 500}
    a, b = Request("a", 200, 200), Request("b", 200, 200)
    log = Loop(make(**options), {a: 200, b: 200}).run([(0, a), (0, b)])
    paused = [entry[2] for entry in log if entry[1] == "pause"]
    assert paused and set(paused) == {"b"}
    assert b.num_preemptions == len(paused)
    assert [entry[2] for entry in log if entry[1] == "end"] == ["a", "b"]


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match="max_req_total_len 300"):
        make(max_req_total_len=300).add(Request("a", 200, 101), 0)
    with pytest.raises(CapacityError, match="of 500 tokens of KV"):
        make().add(Request("a", 400, 100), 0)
