"""Switches in whole runs: files, command line, export, reports, and skipping against stepping."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import Deployment, Trace, simulate
from simulator.breakdown import time_breakdown
from simulator.cli import main
from simulator.errors import ConfigurationError
from simulator.export import vllm_arguments
from simulator.techniques import Techniques
from simulator.workload import Runs, generate_trace
from simulator.workload.lengths import Lengths


def test_a_file_states_switches_as_the_command_line_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("model: llama-3.1-8b\ngpu: h100\nenforce_eager: true\nmax_loras: 2\nenable_lora: true\n")
    stated = Deployment.load(path)
    assert stated == Deployment.of(
        model="llama-3.1-8b", gpu="h100", enforce_eager=True, max_loras=2, enable_lora=True
    )
    assert {**stated.resolve().config, "options": {}}["enforce_eager"] is True
    given = (
        "sim estimate --model llama-3.1-8b --gpu h100 --enforce-eager --enable-lora --max-loras 2 --batch 2"
    )
    monkeypatch.setattr(sys, "argv", given.split())
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "techniques: enforce_eager true, enable_lora true, max_loras 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "stated",
    [
        {"enable_lora": True, "max_loras": 2, "kv_offloading_size": 2.0, "enforce_eager": True},
        {"system": "hf-static", "kv_cache": False, "kernel_fusion": False},
        {"pipeline_parallel_size": 2, "attention": "mqa", "kv_cache_dtype": "int4"},
        {"dtype": "q4_k_m", "system": "llama.cpp", "sampling": "greedy"},
    ],
)
def test_what_was_resolved_can_be_run_again(stated: dict[str, Any]) -> None:
    first = Deployment.of(model="llama-3.1-8b", gpu="h100", **stated).resolve()
    again = Deployment.of(**first.config).resolve()
    assert again.num_gpu_blocks == first.num_gpu_blocks
    batches = [(8, 8000), (0, 0, [(500, 0)])]
    assert [again.steptime.seconds(*b) for b in batches] == [first.steptime.seconds(*b) for b in batches]
    assert type(again.scheduler()) is type(first.scheduler())
    assert again.equipment == first.equipment


def test_every_switch_has_an_option_of_the_command_line() -> None:
    from simulator.cli.technique_options import OPTIONS

    assert set(OPTIONS) == set(Techniques.model_fields)


def test_alternatives_are_labelled_by_their_switches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = Path(__file__).parents[3] / "examples" / "chat-2k.jsonl"
    monkeypatch.setenv("COLUMNS", "150")
    words = ["sim", "compare", str(trace), "--num-prompts", "10", "--vary"]
    monkeypatch.setattr(sys, "argv", [*words, "kernel-fusion=true,false"])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "kernel_fusion true  kernel_fusion false" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "kernel_fusion"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("sim: error: --vary 'kernel_fusion': must be NAME=VALUE")


def test_a_contradiction_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sim", "estimate", "--no-kv-cache"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert capsys.readouterr().err == (
        "sim: error: kv_cache false: vllm is built around its KV cache; hf-static can do without\n"
    )


def test_what_vllm_has_a_flag_for_is_exported_and_what_ifs_are_not() -> None:
    deployment = Deployment.of(
        model="llama-3.1-8b", enforce_eager=True, enable_lora=True, max_loras=4, kv_offloading_size=20
    )
    assert shlex.join(vllm_arguments(deployment)) == (
        "vllm serve llama-3.1-8b --max-loras 4 --kv-offloading-size 20.0 --enforce-eager --enable-lora"
    )
    with pytest.raises(ConfigurationError, match="flash_attention false: a what-if, vLLM has no flag for it"):
        vllm_arguments(Deployment.of(flash_attention=False))


def test_generation_without_a_cache_is_slower_by_what_it_computes_again() -> None:
    trace = generate_trace(8, input_length=Lengths.parse("200"), output_length=Lengths.parse("50"))
    cached, again = (
        simulate(trace, Deployment(model="llama-3.1-8b", gpu="a100", system="hf-static", kv_cache=flag))
        for flag in (None, False)
    )
    steps = again.resolved.steptime
    assert again.summary["duration"] == pytest.approx(
        sum(steps.seconds(0, 0, [(200 + i, 0)] * 8) for i in range(50)), rel=1e-3
    )
    assert again.summary["duration"] > 2 * cached.summary["duration"]
    assert again.summary["kv_cache_usage_max"] == 0 < cached.summary["kv_cache_usage_max"]
    parts = time_breakdown(again)
    assert sum(parts.values()) == pytest.approx(again.series[0].sum("duration_s"))
    assert "attention, decode" not in parts


def test_samples_and_adapters_can_be_generated() -> None:
    trace = generate_trace(
        60,
        input_length=Lengths.parse("50"),
        output_length=Lengths.parse("5"),
        turns=Lengths.parse("3"),
        samples=4,
        num_adapters=5,
    )
    assert set(trace.n.tolist()) == {4}
    assert set(trace.lora.names) <= {f"adapter-{i}" for i in range(5)}
    names = list(trace.lora)
    assert all(names[i] == names[i - 1] for i in range(60) if trace.turn[i])
    plain = generate_trace(60, input_length=Lengths.parse("50"), output_length=Lengths.parse("5"))
    assert not len(plain.lora.names) and set(plain.n.tolist()) == {1}
    given = plain.with_samples(3).with_adapters(2, seed=1)
    assert set(given.n.tolist()) == {3} and set(given.lora) == {"adapter-0", "adapter-1"}
    turns = trace.with_adapters(4)
    assert all(turns.lora[i] == turns.lora[i - 1] for i in range(60) if turns.turn[i])
    for stated in ({"samples": 0}, {"num_adapters": -1}):
        with pytest.raises(ConfigurationError, match="must be at least"):
            generate_trace(5, input_length=Lengths.parse("5"), output_length=Lengths.parse("5"), **stated)


REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 3), st.integers(1, 120), st.integers(1, 40), st.sampled_from([None, "a", "b", "c"]),
        st.integers(0, 3),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(REQUESTS, st.integers(1, 3), st.booleans())
def test_adapters_and_host_memory_decide_alike_however_many_steps_are_taken_at_once(
    rows: list[tuple[float, int, int, Any, int]], slots: int, asynchronous: bool
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    times, prompts, outputs, adapters, groups = (list(column) for column in zip(*rows, strict=True))
    content = Runs(np.arange(len(rows) + 1), np.array(groups), np.array(prompts))
    trace = Trace.from_columns(times, prompts, outputs, max_tokens=outputs, lora=adapters, content=content)
    resolved = Deployment(
        model="llama-3.1-8b", gpu="h100", num_gpu_blocks=30, max_model_len=160, enable_lora=True,
        max_loras=slots, kv_offloading_size=0.1, async_scheduling=asynchronous,
    ).resolve()  # fmt: skip
    skipped, stepped = (simulate(trace, resolved, stepped=flag) for flag in (False, True))
    assert skipped.summary["completed"] == len(rows)
    np.testing.assert_allclose(skipped.records.finish_time, stepped.records.finish_time, rtol=1e-9)
    assert skipped.records.cached_tokens.tolist() == stepped.records.cached_tokens.tolist()
    assert skipped.transfers == stepped.transfers
    used = len({name for name in adapters if name})
    assert skipped.transfers["adapters"] >= used
