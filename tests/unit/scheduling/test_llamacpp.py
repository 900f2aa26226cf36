"""llama.cpp's slots: who gets which, what is reused, and what happens when the KV cache is full."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.errors import CapacityError, ConfigurationError
from simulator.results import FAILED, FINISHED, REJECTED
from simulator.scheduling import Batch, Request
from simulator.scheduling.llamacpp import LlamaCpp
from simulator.scheduling.llamacpp_batch import micro_batches
from simulator.scheduling.llamacpp_cells import Cells
from simulator.scheduling.llamacpp_slots import Completion
from simulator.scheduling.token_runs import Tokens
from simulator.workload import Trace


def request(id: str, prompt: int, output: int = 4, *, content: Any = (), **wishes: Any) -> Request:
    n = wishes.pop("n", 1)
    made = Request(id, prompt, output, content=content, n=n, output_id=1000 + ord(id))
    made.state = Completion(**wishes)
    return made


def step(server: LlamaCpp) -> dict[str, Any]:
    """One pass of the loop; requests end after ``max_tokens``."""
    prefill: dict[str, int] = {}
    decode: list[str] = []
    gone: list[str] = []
    while True:
        batch = server.schedule(0.0)
        if not isinstance(batch, Batch):
            break
        for r, chunk, _ in batch.prefills:
            prefill[r.id] = prefill.get(r.id, 0) + chunk
        decode += [r.id for r in batch.decodes or ()]
        gone += [r.id for r, _ in (*batch.rejected, *batch.failed)]
        rows = [*(batch.decodes or ()), *batch.joining]
        server.commit(batch, [r for r in rows if server.decoding.generated(r) == r.max_tokens], 0.0)
        if not server.mid_step:
            break
    return {"prefill": prefill, "decode": decode, "gone": gone, "journal": server.journal}


def launches(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [entry[1:] for entry in row["journal"] if entry[0] == "launch"]


def make(**options: Any) -> LlamaCpp:
    return LlamaCpp(**{"num_kv_cells": 4096, "n_parallel": 2, "explicit": True, **options})


def test_slots_never_used_come_first_from_the_last() -> None:
    server = make()
    server.add(request("a", 8), 0.0)
    server.add(request("b", 8), 0.0)
    assert launches(step(server)) == [("a", 1, "lru"), ("b", 0, "lru")]


def test_prompts_enter_the_batch_in_the_order_of_slots_not_of_arrival() -> None:
    server = make(n_batch=10)
    server.add(request("a", 8), 0.0)  # slot 1
    server.add(request("b", 8), 0.0)  # slot 0
    assert step(server)["prefill"] == {"b": 8, "a": 2}
    assert step(server) | {"journal": 0} == {"prefill": {"a": 6}, "decode": ["b"], "gone": [], "journal": 0}


def test_without_continuous_batching_prompts_wait_until_nobody_generates() -> None:
    server = make(cont_batching=False)
    server.add(request("a", 8, 3), 0.0)
    assert step(server)["prefill"] == {"a": 8}
    server.add(request("b", 8), 0.0)
    assert step(server)["prefill"] == {}
    assert step(server)["decode"] == ["a"]
    assert step(server)["prefill"] == {"b": 8}


def test_a_prompt_goes_to_the_slot_that_has_most_of_it_and_computes_the_rest() -> None:
    server = make(cache_ram_mib=0)
    server.add(request("a", 20, 2, content=((7, 20),)), 0.0)
    for _ in range(3):
        step(server)
    follower = request("b", 30, 2, content=((7, 20),))
    server.add(follower, 0.0)
    row = step(server)
    assert launches(row) == [("b", 1, "lcp")]
    assert row["prefill"] == {"b": 10}
    assert follower.cached_tokens == 20


def test_a_known_prompt_computes_its_last_token_again() -> None:
    server = make(cache_ram_mib=0)
    for id in "ab":
        server.add(request(id, 20, 1, content=((7, 20),)), 0.0)
        row = step(server)
    assert row["prefill"] == {"b": 1}


def test_a_similarity_at_the_threshold_is_not_enough() -> None:
    server = make(slot_prompt_similarity=0.5, cache_ram_mib=0)
    server.add(request("a", 10, 1, content=((7, 10),)), 0.0)
    step(server)
    server.add(request("b", 20, 1, content=((7, 10),)), 0.0)
    assert launches(step(server)) == [("b", 0, "lru")]


def test_two_releases_in_a_step_bring_two_requests_back_in_reverse() -> None:
    server = make()
    for id in "abcd":
        server.add(request(id, 4, 2), 0.0)
    step(server)
    assert [r.id for r in server.deferred] == ["c", "d"]
    step(server)
    assert [entry[0] for entry in launches(step(server))] == ["d", "c"]


def test_idle_slots_of_a_unified_cache_live_on_in_host_memory() -> None:
    server = make(n_parallel=0, n_ctx=1024)
    server.add(request("a", 100, 2, content=((7, 100),)), 0.0)
    for _ in range(3):
        step(server)
    server.add(request("x", 5, 9), 0.0)
    row = step(server)
    assert ("save", 3, 101, 48 + (131072 + 12) * 101) in row["journal"]
    assert ("clear", 3, 101) in row["journal"]
    follower = request("b", 120, 2, content=((7, 100),))
    server.add(follower, 0.0)
    step(server)
    assert follower.cached_tokens == 100


def test_the_oldest_entry_leaves_a_full_prompt_cache() -> None:
    server = make(n_parallel=1, cache_ram_mib=1, kv_bytes_per_token=8192)  # 127 tokens
    for id in "abc":
        server.add(request(id, 60, 1, content=((ord(id), 60),)), 0.0)
        step(server)
    server.add(request("d", 60, 1), 0.0)
    assert ("evict",) in step(server)["journal"]
    assert server.cache is not None and len(server.cache.entries) == 2


def test_a_prompt_as_long_as_the_context_is_refused_when_its_turn_comes() -> None:
    server = make(n_ctx=512)
    server.add(request("a", 256), 0.0)
    row = step(server)
    assert row["gone"] == ["a"] and not server.running


def test_an_answer_ends_where_the_context_does() -> None:
    server = make(n_ctx=512)
    long = request("a", 250, 100)
    server.add(long, 0.0)
    assert long.max_tokens == 6  # 250 + 6 - 1 tokens in the slot, and one more would be its last


def test_a_full_context_is_shifted() -> None:
    server = make(n_parallel=1, n_ctx=256, context_shift=True)
    server.add(request("a", 250, 100, n_keep=4), 0.0)
    entries = [entry for _ in range(140) for entry in step(server)["journal"] if entry[0] == "shift"]
    assert entries == [("shift", 0, 4, 251, 125)]
    assert not server.running


def test_parallel_completions_cannot_be_shifted() -> None:
    server = make(n_parallel=2, n_ctx=512, context_shift=True)
    server.add(request("a", 250, 100, n=2), 0.0)
    gone = [id for _ in range(10) for id in step(server)["gone"]]
    assert gone == ["a/1", "a"] and not server.running


def test_a_full_unified_cache_fails_everybody_when_one_token_does_not_fit() -> None:
    server = make(num_kv_cells=256, n_parallel=2, kv_unified=True, n_batch=256)
    server.add(request("a", 130, 50), 0.0)
    step(server)
    server.add(request("b", 130, 50), 0.0)
    row = step(server)  # 131 and 130 tokens in 256 cells
    assert sorted(row["gone"]) == ["a", "b"]
    assert row["prefill"] == {"b": 125} and row["decode"] == ["a"]
    assert server.cells.used == 0
    calls = [entry[1:] for entry in row["journal"] if entry[0] == "call"]
    assert calls[0] == (131, 1) and calls[1] == (128, 1) and calls[2] == (64, 0)


def test_an_idle_slot_is_cleared_before_a_call_is_halved() -> None:
    server = make(num_kv_cells=256, n_parallel=2, kv_unified=True, n_batch=256, cache_ram_mib=0)
    server.add(request("a", 130, 1), 0.0)
    step(server)
    server.add(request("b", 200, 2), 0.0)
    row = step(server)
    assert ("purge", 1, 130) in row["journal"] and row["prefill"] == {"b": 200}


def test_further_completions_share_the_prompt() -> None:
    server = make(num_kv_cells=1024, n_parallel=3, kv_unified=True)
    server.add(request("a", 40, 3, n=3), 0.0)
    row = step(server)
    assert launches(row) == [("a/1", 0, "child"), ("a/2", 1, "child"), ("a", 2, "lru")]
    assert server.cells.used == 40
    assert step(server)["decode"] == ["a/1", "a/2", "a"]
    assert server.cells.used == 43


def test_requests_that_never_fit_are_refused() -> None:
    with pytest.raises(CapacityError):
        make().add(request("a", 4, n=3), 0.0)
    with pytest.raises(ConfigurationError):
        make(n_batch=0)


# micro-batches


def rows(*spec: tuple[int, int, bool]) -> list[Any]:
    return [(slot, Request(str(slot), 1, 1), count, 0, decodes) for slot, count, decodes in spec]


def shape(forwards: list[Batch]) -> list[tuple[int, list[int]]]:
    return [(f.num_decodes, [chunk for _, chunk, _ in f.prefills]) for f in forwards]


def test_streams_make_rectangular_micro_batches_of_neighbours() -> None:
    batch = rows((0, 1, True), (3, 1, True), (1, 9, False), (2, 4, False))
    assert shape(micro_batches(batch, 512, unified=False)) == [(1, [1, 1]), (1, []), (0, [3, 3]), (0, [5])]


def test_a_unified_cache_takes_tokens_in_order() -> None:
    batch = rows((0, 1, True), (3, 1, True), (1, 9, False), (2, 4, False))
    assert shape(micro_batches(batch, 8, unified=True)) == [(2, [6]), (0, [3, 4])]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 16), st.booleans())
def test_micro_batches_compute_every_token_once(counts: list[int], n_ubatch: int, unified: bool) -> None:
    batch = rows(*((2 * i % 7, count, count == 1) for i, count in enumerate(counts)))
    forwards = micro_batches(batch, n_ubatch, unified=unified)
    assert sum(f.num_tokens for f in forwards) == sum(counts)
    assert all(0 < f.num_tokens <= n_ubatch for f in forwards)


# what slots hold

sequences = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=6)


def tokens_of(spec: list[tuple[int, int]]) -> Tokens:
    made = Tokens()
    for name, count in spec:
        made.append(name, 1, 0, count)
    return made


@given(sequences, sequences)
def test_runs_compare_like_lists(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    first, second = tokens_of(a), tokens_of(b)
    plain = 0
    for x, y in zip(list(first), list(second), strict=False):
        if x != y:
            break
        plain += 1
    assert first.common_prefix(second) == plain


@given(sequences, st.integers(0, 12), st.integers(0, 12))
def test_runs_are_cut_like_lists(spec: list[tuple[int, int]], lo: int, hi: int) -> None:
    made, (lo, hi) = tokens_of(spec), sorted((lo, hi))
    assert list(made.part(lo, hi)) == list(made)[lo:hi]
    assert list(made.without(lo, hi)) == list(made)[:lo] + list(made)[hi:]


def test_shared_cells_are_free_when_nobody_holds_them() -> None:
    cells = Cells(100, 3)
    cells.grow(0, 40)
    cells.share(0, 1)
    cells.grow(1, 5)
    assert cells.used == 45
    cells.keep(0, 10)
    assert cells.used == 45 and cells.held(1) == 45
    cells.keep(1, 0)
    assert cells.used == 10


# whole runs


class Clock:
    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return 0.01 + 1e-4 * num_decodes + 1e-6 * decode_context + sum(2e-4 * chunk for chunk, _ in prefills)

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]


def run(trace: Trace, *, stepped: bool = False, **options: Any) -> Any:
    env = simpy.Environment()
    cluster = Cluster(env, trace, trace.max_tokens, lambda: LlamaCpp(**options), Clock(), stepped=stepped)  # type: ignore[arg-type]
    env.run()
    assert cluster.replicas[0].scheduler.blocks_used == 0
    return cluster.records.build()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([{}, {"cache_idle_slots": False}, {"n_parallel": 3}]))
def test_counted_and_explicit_steps_agree_where_requests_fail(seed: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    output = rng.integers(1, 120, 30)
    trace = Trace.from_columns(
        np.cumsum(rng.exponential(0.1, 30)), rng.integers(1, 200, 30), output, max_tokens=output
    )
    limits = {"num_kv_cells": 512, "n_batch": 64, "n_ubatch": 32, **options}
    counted = run(trace, **limits)
    for other in (run(trace, stepped=True, **limits), run(trace, explicit=True, **limits)):
        assert np.array_equal(counted.status, other.status)
        np.testing.assert_allclose(counted.finish_time, other.finish_time, rtol=1e-9)
    assert set(counted.status.tolist()) <= {FINISHED, FAILED, REJECTED}


def test_failed_requests_are_counted_with_their_reason() -> None:
    lengths = np.array([130, 130])
    trace = Trace.from_columns(
        np.array([0.0, 0.001]), lengths, np.array([50, 50]), max_tokens=np.array([50, 50])
    )
    records = run(trace, num_kv_cells=256, n_batch=256, cache_ram_mib=0)
    assert records.status.tolist() == [FAILED, FAILED]
    assert "unified KV cache" in records.reasons[records.reason[0]]
