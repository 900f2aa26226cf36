"""What is written is read back the same."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.workload import Lengths, Trace, common_prefix, gamma_arrivals, generate_trace, read_trace
from simulator.workload.export import as_written

COLUMNS = ["input_length", "output_length", "max_tokens", "priority", "n", "session", "turn"]
requests = st.lists(
    st.tuples(st.floats(0, 1e6), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["a", "b", None])),
    min_size=1,
    max_size=8,
)


def assert_same(a: Trace, b: Trace) -> None:
    for name in COLUMNS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    np.testing.assert_allclose(a.arrival_time, b.arrival_time, atol=2e-7)
    np.testing.assert_allclose(a.delay, b.delay, atol=2e-7)
    for name in ("model", "tenant", "slo_class", "lora"):
        assert list(getattr(a, name)) == list(getattr(b, name))
    assert list(a.names()) == list(b.names())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(requests)
def test_any_columns(tmp_path, rows: list[tuple]) -> None:
    time, prompt, output, tenant = zip(*rows)
    first = min(time)
    trace = Trace.from_columns(
        [t - first for t in time], prompt, output, tenant=tenant, priority=output, n=prompt
    )
    trace.to_jsonl(tmp_path / "t.jsonl")
    assert_same(trace, read_trace(tmp_path / "t.jsonl"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0.01, 1e4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
def test_what_a_file_would_give_back_without_the_file(tmp_path, n, rate, turns, prefixes, seed) -> None:
    trace = generate_trace(
        n,
        arrivals=lambda count, generator: gamma_arrivals(count, rate, 0.5, generator),
        input_length=Lengths.parse("lognormal:mean=80,sigma=1"),
        output_length=Lengths.parse("lognormal:mean=20,sigma=1"),
        turns=Lengths.parse(f"uniform:low=1,high={turns}") if turns > 1 else None,
        think_time=3.0,
        num_prefixes=prefixes,
        prefix_length=Lengths.parse("30") if prefixes else None,
        seed=seed,
    )
    trace.to_jsonl(tmp_path / "t.jsonl")
    there, here = read_trace(tmp_path / "t.jsonl"), as_written(trace)
    times = ("arrival_time", "delay")
    for name in (*times, *COLUMNS, "content_offsets", "content_ids", "content_tokens"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), name)  # to the last bit


def test_sessions_with_content(tmp_path) -> None:
    trace = generate_trace(
        100,
        request_rate=1,
        input_length=Lengths.parse("uniform:low=1,high=50"),
        output_length=Lengths.parse("uniform:low=1,high=50"),
        turns=Lengths.parse("3"),
        think_time=5,
        num_prefixes=2,
        prefix_length=Lengths.parse("20"),
    )
    trace.to_jsonl(tmp_path / "t.jsonl")
    back = read_trace(tmp_path / "t.jsonl")
    assert_same(trace, back)
    assert np.array_equal(trace.content_offsets, back.content_offsets)
    assert np.array_equal(trace.content_tokens, back.content_tokens)
    for i in range(0, 100, 7):
        for j in range(100):
            assert common_prefix(trace.content, i, j) == common_prefix(back.content, i, j)


def test_mooncake_stays_readable_for_others(real, tmp_path) -> None:
    trace = read_trace(real("mooncake/synthetic_trace.jsonl"))
    trace.to_jsonl(tmp_path / "t.jsonl")
    with (tmp_path / "t.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    assert all(len(r["hash_ids"]) == -(-r["input_length"] // 512) for r in records)
    back = read_trace(tmp_path / "t.jsonl")
    assert_same(trace, back)
    assert np.array_equal(trace.content_tokens, back.content_tokens)


def test_azures_ticks_survive(real, tmp_path) -> None:
    trace = read_trace(real("azure/AzureLLMInferenceTrace_code.csv"))
    trace.to_jsonl(tmp_path / "t.jsonl")
    assert_same(trace, read_trace(tmp_path / "t.jsonl"))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path) -> None:
    trace = Trace.from_columns([0.0], [1], [1])
    with pytest.raises(InputError, match="cannot be written"):
        trace.to_jsonl(tmp_path / "none" / "t.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        trace.to_jsonl(tmp_path)
    assert list(tmp_path.iterdir()) == []
