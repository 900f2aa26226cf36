"""A result says what it rests on, and where the run went beyond the data of a law."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hwprofiles import EndToEnd, load_profile
from hwprofiles.datasheet import save_profile
from hwprofiles.registry import bundled_path, parse_profile
from simulator.breakdown import time_breakdown
from simulator.cli import app
from simulator.deployment import Deployment, Resolved
from simulator.results import StepSeries
from simulator.results.series import head_rows
from simulator.simulation import simulate
from simulator.validity import excursions, footing, laws_used
from simulator.workload import Trace

RUN = EndToEnd(
    system="vllm",
    trace="a test",
    requests=9,
    load=0.8,
    date="2026-11-21",
    clock="wall",
    errors={"throughput": -0.012},
    same_decisions=True,
)


def resolve(**options: object) -> Resolved:
    return Deployment.of(model="llama-3.1-8b", gpu="h100", **options).resolve()


def batch(n: int, prompt: int, output: int) -> Trace:
    """*n* equal requests at once."""
    return Trace.from_columns(np.zeros(n), np.full(n, prompt), np.full(n, output))


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """H100 whose gemm was measured to 1,000 tokens and whose decode attention to 8 sequences."""
    profile = parse_profile(bundled_path("h100-sxm-80gb"))
    ends = {"gemm": {"m": (1.0, 1000.0)}, "decode_attention": {"num_seqs": (1.0, 8.0)}}
    laws = [
        law.model_copy(update={"range": {**law.range, **ends[law.family]}})
        if law.family in ends and law.dtype == "bf16"
        else law
        for law in profile.laws
    ]
    return save_profile(
        profile.model_copy(update={"name": "narrow", "laws": laws, "end_to_end": [RUN]}), tmp_path
    )


def test_a_run_inside_the_data_has_nothing_to_warn_of() -> None:
    resolved = resolve()
    result = simulate(batch(20, 500, 50), resolved)
    assert excursions(resolved.steptime, result.series, result.records) == []
    assert not [line for line in result.warnings if "outside" in line]


def test_how_far_and_how_long_a_run_was_outside(narrow: Path) -> None:
    """One prompt of 1,500 tokens in a step of its own, and 16 sequences that decode in all the others."""
    resolved = Deployment.of(model="llama-3.1-8b", gpu=str(narrow)).resolve()
    result = simulate(batch(16, 1500, 200), resolved)
    found = {e.coordinate: e for e in excursions(resolved.steptime, result.series, result.records)}
    series = result.timeseries[result.timeseries["iterations"] > 0]
    tokens = series["prefill_tokens"] / series["iterations"] + series["num_decodes"]
    for name, values, most in (("m", tokens, 1000), ("num_seqs", series["num_decodes"], 8)):
        share = series["duration_s"][values > most].sum() / series["duration_s"].sum()
        assert found[name].share == pytest.approx(share) and 0 < share < 1
        assert found[name].value == values.max() and (found[name].low, found[name].high) == (1, most)
    assert set(found) == {"m", "num_seqs"}
    lines = [line for line in result.warnings if line.startswith("outside the data")]
    assert len(lines) == 2 and "16 decoding sequences, measured from 1 to 8" in "".join(lines)


def test_prompts_longer_than_any_that_was_measured() -> None:
    resolved = resolve()
    result = simulate(batch(4, 40_000, 3), resolved)
    [found] = [e for e in excursions(resolved.steptime, result.series, result.records) if e.share == 1.0]
    assert (found.law, found.coordinate, found.value) == ("prefill attention", "keys", 40_000)
    assert "outside for 100 % of the requests" in found.text()


def test_a_step_names_its_laws() -> None:
    alone = {law.key for law in laws_used(resolve().steptime)}
    assert alone == {
        ("gemm", "bf16", ""),
        ("decode_attention", "bf16", ""),
        ("prefill_attention", "bf16", ""),
        ("elementwise", "bf16", ""),
        ("sampling", "fp32", ""),
    }
    parallel = resolve(tensor_parallel_size=2, dtype="fp8")
    keys = {law.key for law in laws_used(parallel.steptime)}
    assert {("gemm", "fp8", ""), ("all_reduce", "bf16", "nccl")} <= keys


@pytest.mark.parametrize(
    ("gpu", "verdict"), [("h100", "calibrated in part"), ("a10", "datasheet"), ("l4", "datasheet")]
)
def test_calibrated_or_datasheet(gpu: str, verdict: str) -> None:
    resolved = Deployment.of(model="llama-3.2-1b", gpu=gpu, num_gpu_blocks=500).resolve()
    profile, laws = load_profile(gpu), laws_used(resolved.steptime)
    own = {law.source.kind for law in laws} & {"measured", "fitted"}
    assert bool(own) == (verdict != "datasheet")
    line = footing(profile, laws)
    assert line.startswith(f"step times: {verdict}, profile {profile.name}; ")
    assert line == resolved.provenance[0]


def test_the_command_line_says_so(narrow: Path) -> None:
    trace = Path(__file__).parents[2] / "examples" / "chat-2k.jsonl"
    options = ["run", str(trace), "--gpu", str(narrow), "--model", "llama-3.1-8b", "--num-prompts", "60"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    assert "step times: calibrated in part, profile narrow" in shown.output
    assert "validated: vllm at 80 % of capacity (a test, 2026-11-21): throughput -1.2 %" in shown.output
    assert "warning: outside the data: decode attention" in shown.output
    profile = CliRunner().invoke(app, ["gpus", "show", str(narrow)])
    assert "end to end vllm at 80 %" in profile.output and "same decisions" in profile.output
    assert "not validated" in CliRunner().invoke(app, ["gpus", "show", "h100"]).output


def test_logits_are_gathered_of_sampled_rows_only() -> None:
    """A prompt of 8,192 tokens samples one row: 256 kB of logits, far inside what was measured."""
    resolved = resolve(tensor_parallel_size=2)
    result = simulate(batch(4, 8192, 20), resolved)
    assert [found.law for found in excursions(resolved.steptime, result.series, result.records)] == []


def test_long_idle_spans_in_a_folded_series_change_neither_breakdown_nor_warnings() -> None:
    """A request every 20 s: points that fold many rows are idle for most of their span."""
    n = 1500
    trace = Trace.from_columns(20.0 * np.arange(n), [500] * n, [100] * n)
    result = simulate(trace, Deployment.of(model="llama-3.1-8b", gpu="h100"))
    fine = result.series[0]
    coarse = StepSeries(num_gpu_blocks=fine.num_gpu_blocks, block_size=fine.block_size, max_points=50)
    for row in head_rows(fine).tolist():
        coarse.append(*row)
    assert len(coarse.points()["time"]) < 100 < 4000 < len(head_rows(fine))
    folded = replace(result, series=[coarse])
    whole, parts = time_breakdown(result), time_breakdown(folded)
    for name, seconds in whole.items():
        share = seconds / sum(whole.values())
        assert parts[name] / sum(parts.values()) == pytest.approx(share, rel=0.02, abs=0.002), name
    assert folded.warnings == result.warnings
