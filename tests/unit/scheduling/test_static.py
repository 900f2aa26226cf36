"""Request-level batches: who is in one, what its rows cost, when its answers are handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy

from simulator.cluster import Cluster
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling import Request, Wait
from simulator.scheduling.system import find_system
from simulator.workload import Trace


def make(name: str, requests: list[tuple[int, int]], **options: Any) -> tuple[Any, list[Request]]:
    scheduler = find_system(name).scheduler(max_total_tokens=10_000, **options)
    made = [Request(f"r{i}", prompt, limit) for i, (prompt, limit) in enumerate(requests)]
    for request in made:
        scheduler.add(request, 0.0)
    return scheduler, made


def ids(batch: Any) -> list[str]:
    return [request.id for request, _, _ in batch.prefills]


class Clock:
    """A step takes one second, a prompt token a millisecond more."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return 1.0 + 0.001 * float(sum(chunk for chunk, _ in prefills))

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [1.0] * n


def run(name: str, arrivals: list[float], lengths: list[tuple[int, int]], **options: Any) -> Any:
    prompt, output = (np.array(column) for column in zip(*lengths, strict=True))
    trace = Trace.from_columns(np.array(arrivals), prompt, output)
    env = simpy.Environment()
    make = lambda: find_system(name).scheduler(max_total_tokens=10_000, **options)  # noqa: E731
    cluster = Cluster(env, trace, output, make, Clock())  # type: ignore[arg-type]
    env.run()
    return cluster.records.build(), cluster.replicas[0]


def test_generate_pads_prompts_and_computes_ended_rows_to_the_end() -> None:
    scheduler, (a, b) = make("hf-static", [(10, 5), (30, 5)])
    batch = scheduler.schedule(0.0)
    assert (ids(batch), batch.padded_tokens) == (["r0", "r1"], 20)
    scheduler.commit(batch, [], 1.0)
    batch = scheduler.schedule(1.0)
    assert (batch.num_decodes, batch.idle_rows, batch.decode_context) == (2, 0, 2 * 31)
    scheduler.commit(batch, [a], 2.0)
    batch = scheduler.schedule(2.0)
    assert (batch.num_decodes, batch.idle_rows, batch.decode_context) == (2, 1, 2 * 32)
    assert scheduler.blocks_used == 2 * 32
    scheduler.commit(batch, [b], 3.0)
    assert scheduler.blocks_used == 0


@pytest.mark.parametrize(("name", "held"), [("fastertransformer", 2 * 35), ("ctranslate2", 1 * 32)])
def test_elsewhere_ended_rows_leave_the_computation(name: str, held: int) -> None:
    scheduler, (a, _) = make(name, [(10, 5), (30, 5)])
    batch = scheduler.schedule(0.0)
    assert batch.padded_tokens == 0
    scheduler.commit(batch, [], 1.0)
    batch = scheduler.schedule(1.0)
    assert (batch.num_decodes, batch.decode_context) == (2, 11 + 31)
    scheduler.commit(batch, [a], 2.0)
    batch = scheduler.schedule(2.0)
    assert (batch.num_decodes, batch.idle_rows) == (1, 0)
    assert scheduler.blocks_used == held


def test_nobody_joins_a_batch() -> None:
    for name in ("hf-static", "fastertransformer", "ctranslate2", "triton"):
        scheduler, _ = make(name, [(10, 5), (30, 5), (20, 5)], max_batch_size=2)
        scheduler.commit(scheduler.schedule(0.0), [], 1.0)
        assert scheduler.schedule(1.0).prefills == []
        assert scheduler.num_waiting == 1


def test_answers_come_when_the_batch_is_done() -> None:
    records, replica = run("hf-static", [0.0, 0.0, 0.5], [(10, 2), (30, 6), (10, 1)])
    first = 1.06 + 5  # two rows of 30 tokens, then five steps of the longer answer
    assert records.first_token_time.tolist() == pytest.approx([first, first, first + 1.01])
    assert records.finish_time.tolist() == records.first_token_time.tolist()
    assert (replica.itl.total, replica.itl.max) == (6, 0.0)
    assert replica.series.sum("output_tokens") == 9


def test_the_static_engine_of_onnxruntime_hands_tokens_out_as_they_come() -> None:
    records, replica = run("onnxruntime-genai-static", [0.0, 0.0, 0.5], [(10, 2), (30, 6), (10, 1)])
    assert records.first_token_time.tolist() == pytest.approx([1.06, 1.06, 6.06 + 1.01])
    assert records.finish_time.tolist() == pytest.approx([2.06, 6.06, 7.07])
    assert replica.itl.total == 6


def test_a_batch_that_does_not_fit_is_cut_or_halved() -> None:
    lengths = [(1000, 2000)] * 4  # three rows of 3000 fit into 10,000
    for name, size in (("hf-static", 3), ("onnxruntime-genai-static", 2)):
        scheduler, _ = make(name, lengths, max_model_len=4096)
        assert len(scheduler.schedule(0.0).prefills) == size


def test_ctranslate2_sorts_by_length_and_cuts_by_examples_or_tokens() -> None:
    lengths = [(10, 5), (40, 5), (20, 5), (30, 5)]
    scheduler, _ = make("ctranslate2", lengths, max_batch_size=2)
    batch = scheduler.schedule(0.0)
    assert ids(batch) == ["r1", "r3"]
    late = Request("late", 100, 5)
    scheduler.add(late, 0.0)  # it belongs to the next call
    scheduler.commit(batch, [request for request, _, _ in batch.prefills], 1.0)
    assert ids(scheduler.schedule(1.0)) == ["r2", "r0"]
    scheduler, _ = make("ctranslate2", lengths, max_batch_size=90, batch_type="tokens")
    assert ids(scheduler.schedule(0.0)) == ["r1", "r3"]  # 2 · 40 padded tokens, 3 · 40 would be above 90


def test_triton_sends_a_preferred_size_at_once_and_the_rest_when_the_oldest_has_waited() -> None:
    options = {"max_batch_size": 8, "preferred_batch_size": (2, 4), "max_queue_delay_microseconds": 100_000}
    scheduler, _ = make("triton", [(10, 5)], **options)
    wait = scheduler.schedule(0.0)
    assert isinstance(wait, Wait)
    assert wait.until == pytest.approx(0.1)
    assert ids(scheduler.schedule(0.1)) == ["r0"]
    for count, size in ((2, 2), (3, 2), (5, 4), (9, 4)):
        scheduler, _ = make("triton", [(10, 5)] * count, **options)
        assert len(scheduler.schedule(0.0).prefills) == size
    scheduler, _ = make("triton", [(10, 5)] * 5, max_batch_size=4)  # no delay: whatever is queued
    assert len(scheduler.schedule(0.0).prefills) == 4


def test_gpt_fast_takes_one_prompt_and_allocates_its_whole_cache() -> None:
    scheduler, _ = make("gpt-fast", [(10, 5), (30, 5)])
    batch = scheduler.schedule(0.0)
    assert ids(batch) == ["r0"]
    assert (scheduler.blocks_used, scheduler.waste()) == (15, (5, 0, 0.0, 0.0))


def test_waste_of_a_rectangle() -> None:
    scheduler, _ = make("fastertransformer", [(10, 5), (30, 8)])
    scheduler.schedule(0.0)
    assert scheduler.blocks_used == 2 * 38
    assert scheduler.waste() == (2 * 8, 20, 0.0, 0.0)


def test_what_can_never_run_is_refused_with_the_reason() -> None:
    scheduler, _ = make("hf-static", [], max_model_len=20_000)
    with pytest.raises(CapacityError, match="may need 11000 tokens of KV, there are 10000"):
        scheduler.add(Request("a", 10_000, 1000), 0.0)
    with pytest.raises(CapacityError, match="no room for output within max_model_len 20000"):
        scheduler.add(Request("b", 20_000, 1), 0.0)
    with pytest.raises(ConfigurationError, match="batch_type 'words': must be examples or tokens"):
        make("ctranslate2", [], batch_type="words")
    with pytest.raises(
        ConfigurationError, match="preferred_batch_size 9: must be between 1 and max_batch_size 4"
    ):
        make("triton", [], max_batch_size=4, preferred_batch_size=(9,))
