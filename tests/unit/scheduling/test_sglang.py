"""SGLang's scheduler: what its admission, its retraction and its look-ahead do to hand-worked cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import RUNNING, Request
from simulator.scheduling.sglang import Sglang


class Loop:
    """Drives a scheduler pass by pass, or over as many as it says repeat, and logs what happens when."""

    def __init__(self, scheduler: Sglang, lengths: dict[Request, int], skip: bool = False) -> None:
        self.scheduler, self.lengths, self.skip = scheduler, lengths, skip
        self.log: list[tuple[Any, ...]] = []
        self.now = 0
        self.inflight: deque[Batch] = deque()
        self.ends: dict[Request, int] = {}

    def run(self, arrivals: Iterable[tuple[int, Request]]) -> list[tuple[Any, ...]]:
        queue = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
        while True:
            while queue and queue[0][0] <= self.now:
                self.scheduler.add(queue.popleft()[1], self.now)
            idle = not self.inflight
            batch = self.step(queue[0][0] if queue else 1 << 30)
            if batch is None and idle:
                if not queue:
                    return self.log
                self.now = max(self.now + 1, queue[0][0])
            assert self.now < 100_000, "no progress"

    def step(self, next_arrival: int) -> Batch | None:
        batch = self.scheduler.schedule(self.now)
        assert batch is None or isinstance(batch, Batch)
        if batch is not None:
            self.begin(batch)
            self.inflight.append(batch)
        if self.inflight and (batch is None or len(self.inflight) == self.scheduler.depth):
            self.complete(self.inflight.popleft(), next_arrival)
        self.now += 1
        return batch

    def begin(self, batch: Batch) -> None:
        for request, chunk, context in batch.prefills:
            self.log.append((self.now, "prefill", request.id, chunk, context, batch.num_decodes))
        for request in batch.preempted:
            self.ends.pop(request, None)
            self.log.append((self.now, "retract", request.id, request.generated))
        for request in batch.joining:
            self.ends[request] = batch.iteration + self.lengths[request] - request.generated

    def complete(self, batch: Batch, next_arrival: int) -> None:
        if self.skip:
            self.leap(batch, next_arrival)
        ended = [r for r, end in self.ends.items() if end <= batch.iteration and r.status is RUNNING]
        for request in ended:
            del self.ends[request]
            self.log.append((self.now, "end", request.id))
        self.scheduler.commit(batch, ended, self.now)
        pool = self.scheduler.pool
        assert 0 <= self.scheduler.blocks_used <= self.scheduler.num_blocks
        if pool.cache:
            assert pool.free + pool.cache.tokens <= pool.capacity

    def leap(self, batch: Batch, next_arrival: int) -> None:
        latest = self.inflight[-1] if self.inflight else batch
        if not (batch.repeatable and latest.repeatable and batch.num_decodes == latest.num_decodes):
            return
        limit = min([end - batch.iteration for end in self.ends.values()] + [next_arrival - self.now - 1])
        n = self.scheduler.repeats(latest, limit + 1) - 1
        if n > 0:
            self.scheduler.advance(latest, n)
            if latest is not batch:
                batch.iteration += n
            self.now += n


def make(**options: Any) -> Sglang:
    limits = {"max_total_tokens": 400, "max_running_requests": 8, "chunked_prefill_size": 64}
    return Sglang(**(limits | options))


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
        "page_size": st.sampled_from([1, 4]),
        "schedule_policy": st.sampled_from(["fcfs", "lpm", "dfs-weight", "lof"]),
        "schedule_conservativeness": st.sampled_from([0.1, 1.0]),
        "chunked_prefill_size": st.sampled_from([-1, 16, 64]),
        "disable_radix_cache": st.booleans(),
        "disable_overlap_schedule": st.booleans(),
        "enable_mixed_chunk": st.booleans(),
        "max_total_tokens": st.sampled_from([250, 400, 1200]),
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
        pool = scheduler.pool
        states.append((pool.free, pool.cache.tokens if pool.cache else 0, scheduler.new_token_ratio.current))
        assert scheduler.blocks_used == 0
        assert scheduler.num_running == scheduler.num_waiting == 0
    assert logs[0] == logs[1] == logs[2]
    assert states[0] == states[1] == states[2]
    assert sum(kind == "end" for _, kind, *_ in logs[0]) == len(rows)


def admitted(scheduler: Sglang, *requests: Request) -> list[str]:
    """Who is in the next prefill batch when *requests* arrive."""
    for request in requests:
        scheduler.add(request, 0)
    batch = scheduler.schedule(0)
    assert isinstance(batch, Batch)
    scheduler.commit(batch, [], 0)
    return [request.id for request, _, _ in batch.prefills]


@pytest.mark.parametrize(("prompt", "expected"), [(4000, ["b"]), (4300, [])])
def test_admission_reserves_a_share_of_the_outputs_to_come(prompt: int, expected: list[str]) -> None:
    """10,000 tokens, 1,000 held, 0.7 · 1,000 reserved: 8,300 are left for a prompt and its 4,000 outputs."""
    scheduler = make(max_total_tokens=10_000, chunked_prefill_size=-1, disable_overlap_schedule=True)
    scheduler.add(Request("a", 1000, 1000), 0)
    first = scheduler.schedule(0)
    assert isinstance(first, Batch)
    scheduler.commit(first, [], 0)
    scheduler.add(Request("b", prompt, 4000), 1)
    batch = scheduler.schedule(1)
    assert isinstance(batch, Batch)
    assert [request.id for request, _, _ in batch.prefills] == expected
    assert scheduler.batch_is_full == (not expected)


def test_one_request_at_a_time_is_in_the_middle_of_its_prompt() -> None:
    scheduler = make(max_total_tokens=1000, disable_overlap_schedule=True)
    a, b = Request("a", 100, 5), Request("b", 90, 5)
    assert admitted(scheduler, a, b) == ["a"]
    assert scheduler.chunked is a
    batch = scheduler.schedule(1)
    assert isinstance(batch, Batch)
    assert [(r.id, chunk, context) for r, chunk, context in batch.prefills] == [("a", 36, 64), ("b", 28, 0)]
    assert scheduler.chunked is b


def test_a_shared_prefix_is_found_once_the_prompt_is_computed() -> None:
    scheduler = make(max_total_tokens=1000, disable_overlap_schedule=True)
    one, two = (Request(name, 50, 5, content=((7, 40),)) for name in "ab")
    assert admitted(scheduler, one) == ["a"]
    assert admitted(scheduler, two) == ["b"]
    assert two.cached_tokens == 40
    assert scheduler.blocks_used == 50 + 10


def test_longest_prefix_goes_first_and_a_twin_waits() -> None:
    scheduler = make(max_total_tokens=4000, disable_overlap_schedule=True, schedule_policy="lpm")
    assert admitted(scheduler, Request("seed", 60, 5, content=((1, 50),))) == ["seed"]
    twins = [Request(name, 60, 5, content=((2, 50),)) for name in ("x", "y")]
    fan = Request("fan", 60, 5, content=((1, 50),))
    scheduler.chunked_prefill_size = None
    order = admitted(scheduler, twins[0], twins[1], fan)
    assert order == ["fan", "x", "y"]


def test_the_latest_loses_its_memory_and_waits_behind_those_that_wait() -> None:
    """Two prompts of 28 in 100 tokens leave 44, which is 22 decodes of both; then the later one goes."""
    scheduler = make(max_total_tokens=100, schedule_conservativeness=0.0, disable_overlap_schedule=True)
    arrivals = [(i, Request(f"r{i}", 28, 40)) for i in range(3)]
    log = Loop(scheduler, {request: 40 for _, request in arrivals}).run(arrivals)
    assert next(entry for entry in log if entry[1] == "retract") == (24, "retract", "r1", 23)
    assert [entry[2] for entry in log if entry[1] == "prefill"][:4] == ["r0", "r1", "r2", "r1"]


def test_looking_ahead_wastes_a_token_only_where_the_end_is_not_foreseen() -> None:
    """An end by length is known in advance; an end of sequence shows one pass late, after one more token."""
    for spare, decodes in ((0, 4), (10, 5)):
        scheduler = make()
        request = Request("a", 10, 5 + spare)
        scheduler.add(request, 0)
        count, inflight = 0, deque[Batch]()
        for step in range(12):
            batch = scheduler.schedule(step)
            if isinstance(batch, Batch):
                count += batch.num_decodes
                inflight.append(batch)
            if len(inflight) == 2 or (inflight and batch is None):
                done = inflight.popleft()
                scheduler.commit(done, [request] if done.iteration == 4 and not done.prefills else [], step)
        assert count == decodes
        assert scheduler.blocks_used == 0


def test_impossible_requests_and_settings_are_refused() -> None:
    with pytest.raises(CapacityError, match="399 tokens"):
        make().add(Request("a", 399, 5), 0)
    with pytest.raises(ConfigurationError, match="'random'"):
        make(schedule_policy="random")
    with pytest.raises(ConfigurationError, match="chunked_prefill_size 8: below page_size 16"):
        make(chunked_prefill_size=8, page_size=16)
