"""LMDeploy's engines: when prefills run, how blocks are taken ahead, what a preempted sequence keeps."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.errors import CapacityError, ConfigurationError
from simulator.results import FINISHED
from simulator.scheduling import Batch, Request
from simulator.scheduling.lmdeploy import Lmdeploy, batch_size_by_device
from simulator.scheduling.lmdeploy_memory import TrieMemory
from simulator.scheduling.request import RUNNING
from simulator.scheduling.system import Device
from simulator.scheduling.token_runs import Tokens
from simulator.scheduling.turbomind import TurboMind
from simulator.workload import Trace


def make(**options: Any) -> Lmdeploy:
    limits = {"num_gpu_blocks": 64, "block_size": 32, "max_batch_size": 4, "max_prefill_token_num": 256}
    return Lmdeploy(**{**limits, "explicit": True, **options})


class Engine:
    """Drives a scheduler as the engine does, deciding *depth* forwards ahead; a forward a second."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.inflight: deque[Batch] = deque()
        self.tokens: dict[Request, int] = {}
        self.now = 0.0

    def add(self, id: str, prompt: int, output: int, content: Any = ()) -> Request:
        request = Request(id, prompt, output, content=content)
        self.scheduler.add(request, self.now)
        return request

    def decide(self) -> tuple[dict[str, int], Batch | None]:
        """Decide the next forward, then apply the output of the one before."""
        batch = self.scheduler.schedule(self.now)
        self.now += 1.0
        if isinstance(batch, Batch):
            self.inflight.append(batch)
        while self.inflight and len(self.inflight) > (self.scheduler.depth - 1 if batch else 0):
            self._apply(self.inflight.popleft())
        return ({r.id: n for r, n in batch.rows()} if isinstance(batch, Batch) else {}), batch

    def _apply(self, batch: Batch) -> None:
        rows = [r for r in (*(batch.decodes or ()), *batch.joining) if r.status is RUNNING]
        for request in rows:
            self.tokens[request] = self.tokens.get(request, 0) + 1
        ended = [r for r in rows if self.tokens[r] == r.max_tokens]
        self.scheduler.commit(batch, ended, self.now)


def test_a_sequence_computes_one_token_too_many() -> None:
    engine = Engine(make())
    engine.add("a", 10, 2)
    forwards = [engine.decide()[0] for _ in range(4)]
    assert forwards == [
        {"a": 10},
        {"a": 1},
        {"a": 1},
        {},
    ]  # its second token is known after the third is decided


def test_blocks_return_one_forward_after_the_end_is_known() -> None:
    engine = Engine(make(max_batch_size=1))
    engine.add("a", 10, 2)
    engine.add("b", 10, 5)
    for _ in range(3):
        engine.decide()
    assert len(engine.scheduler.line.stopped) == 1
    assert engine.decide()[0] == {"b": 10}
    assert engine.scheduler.memory.num_free == 63 and not engine.scheduler.line.stopped


def test_prefills_wait_for_sixteen_decodes_when_half_the_seats_are_taken() -> None:
    engine = Engine(make())
    for id in "ab":
        engine.add(id, 10, 100)
    engine.decide()
    engine.add("c", 10, 100)
    kinds = [len(engine.decide()[0]) for _ in range(17)]
    assert kinds == [2] * 16 + [1]


def test_many_waiting_tokens_are_prefilled_at_once() -> None:
    engine = Engine(make())
    for id in "ab":
        engine.add(id, 10, 100)
    engine.decide()
    engine.add("c", 250, 9)
    assert engine.decide()[0] == {"a": 1, "b": 1}
    engine.add("d", 6, 9)
    assert engine.decide()[0] == {"c": 250, "d": 6}


def test_a_prefill_stops_at_the_first_that_exceeds_its_tokens() -> None:
    engine = Engine(make())
    for id, prompt in (("a", 200), ("b", 100), ("c", 10)):
        engine.add(id, prompt, 9)
    assert engine.decide()[0] == {"a": 200}


def test_sixteen_tokens_are_taken_ahead() -> None:
    engine = Engine(make())
    engine.add("a", 16, 9)
    engine.add("b", 17, 9)
    engine.decide()
    assert engine.scheduler.memory.num_free == 64 - 1 - 2


def test_a_long_prompt_lets_three_short_prefills_go_first() -> None:
    engine = Engine(make(max_batch_size=16))
    engine.add("long", 600, 9)
    for i in range(5):
        engine.add(f"s{i}", 200, 9)
    forwards = [engine.decide()[0] for _ in range(5)]
    assert forwards[:3] == [{"s0": 200}, {"s1": 200}, {"s2": 200}]
    assert forwards[3] == {"long": 256}
    assert forwards[4] == {"s0": 1, "s1": 1, "s2": 1}  # decodes come right after a chunk


def test_who_finds_no_block_waits_with_the_blocks_it_has() -> None:
    engine = Engine(make(num_gpu_blocks=3, max_batch_size=2))
    first, second = engine.add("a", 20, 30), engine.add("b", 10, 30)
    preempted: list[Request] = []
    for _ in range(25):
        preempted += engine.decide()[1].preempted  # type: ignore[union-attr]
        if preempted:
            break
    assert preempted == [second] and second.num_blocks == 1
    assert second.target - second.computed == 1 and first.status is RUNNING


def test_everybody_finishes_in_a_memory_for_one() -> None:
    engine = Engine(make(num_gpu_blocks=4, max_batch_size=4))
    requests = [engine.add(str(i), 30, 60) for i in range(4)]
    for _ in range(2000):
        engine.decide()
        if not (engine.scheduler.running or engine.scheduler.line or engine.inflight):
            break
    assert all(engine.tokens[r] == 60 for r in requests)
    assert engine.scheduler.blocks_used == 0


def test_requests_of_one_batch_share_a_prefix() -> None:
    engine = Engine(make(enable_prefix_caching=True))
    engine.add("a", 100, 9, content=((1, 100),))
    second = engine.add("b", 100, 9, content=((1, 100),))
    assert engine.decide()[0] == {"a": 100, "b": 4}
    assert second.cached_tokens == 96
    assert engine.scheduler.memory.num_free == 64 - 4 - 1


def test_a_prompt_that_never_fits_is_refused() -> None:
    with pytest.raises(CapacityError):
        make(num_gpu_blocks=2).add(Request("a", 60, 5), 0.0)
    with pytest.raises(ConfigurationError):
        make(prefill_interval=0)


def test_the_batch_size_goes_by_the_device() -> None:
    sizes = [
        batch_size_by_device(Device(name, 80))["max_batch_size"] for name in ("a800-80gb", "h200-sxm", "l40s")
    ]
    assert sizes == [384, 1024, 128]


def test_the_trie_gives_up_its_oldest_leaf_first() -> None:
    memory = TrieMemory(8, 4, prefix_caching=True)
    sequences = []
    for i, at in enumerate((2.0, 1.0)):
        request, tokens = Request(str(i), 12, 1), Tokens()
        tokens.append(i, 1, 0, 12)
        memory.take(request, 3)
        memory.register(request, tokens, 12)
        memory.release(request, at)
        sequences.append(tokens)
    assert memory.num_free == 2 and memory.num_cached == 6
    assert memory.evict(2) == 2
    again = [memory.match(Request(str(i), 12, 1), tokens, 3.0) for i, tokens in enumerate(sequences)]
    assert again == [2, 1]  # of three blocks one token must be left to compute


class Clock:
    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return 0.01 + 1e-4 * num_decodes + 1e-6 * decode_context + sum(2e-4 * chunk for chunk, _ in prefills)

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]


SYSTEMS = [
    (Lmdeploy, {"block_size": 32, "num_gpu_blocks": 24}),
    (Lmdeploy, {"block_size": 17, "num_gpu_blocks": 40, "max_prefill_token_num": 100}),
    (Lmdeploy, {"block_size": 32, "num_gpu_blocks": 24, "enable_prefix_caching": True}),
    (TurboMind, {"block_size": 16, "num_gpu_blocks": 40, "max_prefill_token_num": 100}),
]


@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from(SYSTEMS))
def test_counted_and_explicit_decisions_agree_when_memory_is_short(seed: int, system: Any) -> None:
    policy, limits = system
    rng = np.random.default_rng(seed)
    output = rng.integers(1, 150, 30)
    trace = Trace.from_columns(
        np.cumsum(rng.exponential(0.03, 30)), rng.integers(1, 350, 30), output, max_tokens=output
    )
    results = []
    for stepped, explicit in ((False, False), (True, False), (False, True)):
        env = simpy.Environment()
        cluster = Cluster(
            env,
            trace,
            trace.max_tokens,
            lambda explicit=explicit: policy(max_batch_size=8, explicit=explicit, **limits),
            Clock(),  # type: ignore[arg-type]
            stepped=stepped,
        )
        env.run()
        results.append(cluster.records.build())
        assert cluster.replicas[0].scheduler.blocks_used == 0
    first = results[0]
    assert set(first.status.tolist()) == {FINISHED}
    for other in results[1:]:
        assert np.array_equal(first.num_preemptions, other.num_preemptions)
        np.testing.assert_allclose(first.finish_time, other.finish_time, rtol=1e-9)


# TurboMind


def test_turbomind_serves_in_order_until_the_budget_is_spent() -> None:
    engine = Engine(TurboMind(num_gpu_blocks=64, max_batch_size=4, max_prefill_token_num=96, explicit=True))
    for id, prompt in (("a", 60), ("b", 70), ("c", 5)):
        engine.add(id, prompt, 9)
    assert engine.decide()[0] == {"a": 60, "b": 40}
    assert engine.decide()[0] == {"a": 1, "b": 30, "c": 5}


def test_turbomind_takes_blocks_from_the_latest() -> None:
    engine = Engine(TurboMind(num_gpu_blocks=3, block_size=16, max_batch_size=4, explicit=True))
    first, second = engine.add("a", 15, 20), engine.add("b", 30, 9)
    assert engine.decide()[0] == {"a": 15, "b": 30}
    assert engine.decide()[0] == {"a": 1, "b": 1}
    forward, batch = engine.decide()
    assert forward == {"a": 1} and batch is not None and batch.preempted == [second]
    assert second.computed == 0 and second.target == 32 and first.num_preemptions == 0


def test_turbomind_stops_the_pass_where_somebody_finds_no_block() -> None:
    engine = Engine(TurboMind(num_gpu_blocks=3, block_size=16, max_batch_size=4, explicit=True))
    engine.add("a", 30, 9)
    engine.add("b", 20, 9)
    engine.add("c", 4, 9)
    assert engine.decide()[0] == {"a": 30}  # `c` would fit, but comes after `b`
