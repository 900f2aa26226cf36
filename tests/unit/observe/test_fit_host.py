"""Host costs that are known are found again from what a client sees of them, and `sim run` uses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from calibrate.fit.host import HostFit, fit_host_costs
from calibrate.observe.journal import write_observation
from calibrate.observe.kv_budget import kv_budget_seen
from calibrate.observe.observation import Observation
from hwprofiles import load_profile
from simulator.cli import app
from simulator.errors import ConfigurationError

from .known import FRONT, SEQUENCE, STEP, VLLM, see


@pytest.mark.parametrize("system", ["vllm", "tgi"])
def test_known_costs_are_found(system: str) -> None:
    deployment = VLLM.model_copy(update={"system": system})
    fit = fit_host_costs(see(deployment), deployment)
    batch = 30  # sequences: what both cost together is what a step takes longer
    assert fit.step_s + batch * fit.seq_s == pytest.approx(STEP + batch * SEQUENCE, rel=0.01)
    assert fit.step_s == pytest.approx(STEP, rel=0.1)
    assert fit.request_s == pytest.approx(FRONT, rel=0.05)
    for name in ("tpot.p50", "e2el.mean", "e2el.p50", "e2el.p99"):
        assert abs(fit.after[name]) < 0.02, fit.after
    assert abs(fit.after["tpot.mean"]) < 0.06  # a prompt more or less in the only gap of a short answer
    assert abs(fit.before["tpot.mean"]) > 0.05
    assert (fit.num_fitted, fit.num_held_out) == (56, 24)
    assert fit.spread_step < 0.03 and abs(fit.too_slow) < 0.01


def test_standard_errors_cover_noise() -> None:
    fit = fit_host_costs(see(VLLM, n=150, noise=0.02), VLLM)
    assert abs(fit.step_s - STEP) < 3 * fit.standard_errors["step_s"] < STEP
    assert abs(fit.seq_s - SEQUENCE) < 3 * fit.standard_errors["seq_s"]


def test_costs_that_nobody_expected_are_found() -> None:
    """Sixty times the system's own: what is held for likely must let go."""
    fit = fit_host_costs(see(VLLM, n=60, rate=4.0, costs=(0.03, 5e-4)), VLLM)
    assert fit.step_s + 5 * fit.seq_s == pytest.approx(0.03 + 5 * 5e-4, rel=0.02)
    assert abs(fit.after["tpot.mean"]) < 0.02 < abs(fit.before["tpot.mean"])


def test_equal_batches_leave_a_sequences_share_as_it_is() -> None:
    """One request after the other: a step and a sequence always come together."""
    fit = fit_host_costs(see(VLLM, n=40, rate=0.05), VLLM)
    own = VLLM.resolve().steptime.traits.engine
    assert fit.seq_fixed and fit.seq_s == own.seq_s and list(fit.standard_errors) == ["step_s"]
    assert fit.step_s + fit.seq_s == pytest.approx(STEP + SEQUENCE, rel=0.02)


def test_few_requests_move_the_systems_own_costs_little() -> None:
    own = VLLM.resolve().steptime.traits.engine
    seen = see(VLLM, n=40, noise=0.3)
    few = fit_host_costs(Observation(seen.header, seen.requests[:20]), VLLM)
    assert few.standard_errors["seq_s"] > 0.2 * max(own.seq_s, 1e-5)
    with pytest.raises(ConfigurationError, match=r"19 finished requests .* at least 20"):
        fit_host_costs(Observation(seen.header, seen.requests[:19]), VLLM)


def test_a_slower_law_than_the_server_is_said_not_bent() -> None:
    """Costs are never negative: on a device of which the laws are far too slow they are nought, and that is told."""
    slow = VLLM.model_copy(update={"gpu": "a100"})
    fit = fit_host_costs(see(VLLM), slow)
    assert fit.step_s == 0.0 and fit.too_slow > 0.03


# the KV cache


def test_the_cache_is_what_the_server_states() -> None:
    seen = see(VLLM, n=20, num_gpu_blocks=1234, block_size=32)
    budget = kv_budget_seen(seen)
    assert budget is not None and (budget.tokens, budget.spread) == (1234 * 32, 0.0)


def test_the_cache_follows_from_its_usage() -> None:
    small = VLLM.model_copy(update={"num_gpu_blocks": 3000})
    budget = kv_budget_seen(see(small, n=60, rate=10.0, front=0.0))
    assert budget is not None and "usage" in budget.source
    assert budget.tokens == pytest.approx(3000 * 16, rel=0.02)
    assert kv_budget_seen(replace(see(small, n=20), samples=[])) is None


# the profile


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HostFit, str]:
    """A profile from the command line, its fit, and what was printed."""
    folder = tmp_path_factory.mktemp("fitted")
    seen = see(VLLM, num_gpu_blocks=20_000, block_size=16, server="0.11.0")
    write_observation(seen, folder / "seen.jsonl")
    options = [
        "--gpu",
        "h100",
        "--model",
        "llama-3.1-8b",
        "--system",
        "vllm",
        "--out",
        str(folder / "prod.yaml"),
    ]
    shown = CliRunner().invoke(app, ["calibrate", "fit-host", str(folder / "seen.jsonl"), *options])
    assert shown.exit_code == 0, shown.output
    return folder / "prod.yaml", fit_host_costs(seen, VLLM), shown.output


def test_the_report_says_what_was_found(written: tuple[Path, HostFit, str]) -> None:
    _, fit, output = written
    assert f"per step      {1e3 * fit.step_s:.4g} ±" in output
    assert "320000 tokens, as the server states it" in output
    assert "tpot.p99" in output and "56 requests fitted, the last 24 held out" in output


def test_a_run_on_the_profile_has_the_fitted_costs(written: tuple[Path, HostFit, str]) -> None:
    path, fit, _ = written
    resolved = VLLM.model_copy(update={"gpu": str(path)}).resolve()
    engine = resolved.steptime.traits.engine
    assert engine.step_s == pytest.approx(fit.step_s, rel=1e-3)
    assert engine.seq_s == pytest.approx(fit.seq_s, rel=1e-3)
    assert resolved.num_gpu_blocks == 20_000
    assert any("observed by a known machine of server 0.11.0" in line for line in resolved.provenance)
    assert any(
        "20000 blocks of 16 tokens (as the server states it, 2026-01-01)" in line
        for line in resolved.provenance
    )
    shipped = VLLM.resolve()
    context = 40 * 600
    longer = resolved.steptime.seconds(40, context) - shipped.steptime.seconds(40, context)
    own = shipped.steptime.traits.engine
    assert longer == pytest.approx(fit.step_s + 40 * fit.seq_s - own.step_s - 40 * own.seq_s, rel=1e-2)


def test_other_deployments_take_only_what_holds_for_them(written: tuple[Path, HostFit, str]) -> None:
    path, fit, _ = written
    here = VLLM.model_copy(update={"gpu": str(path)})
    other_system = here.model_copy(update={"system": "sglang"}).resolve()
    assert (
        other_system.steptime.traits.engine
        == VLLM.model_copy(update={"system": "sglang"}).resolve().steptime.traits.engine
    )
    other_model = here.model_copy(update={"model": "qwen3-8b"}).resolve()
    assert other_model.steptime.traits.engine.step_s == pytest.approx(fit.step_s, rel=1e-3)
    assert other_model.num_gpu_blocks != 20_000
    assert any("observed with llama-3.1-8b on 1 GPUs, not qwen3-8b" in line for line in other_model.warnings)
    stated = here.model_copy(update={"num_gpu_blocks": 5000}).resolve()
    assert stated.num_gpu_blocks == 5000
    assert here.model_copy(update={"gpu_memory_utilization": 0.5}).resolve().num_gpu_blocks != 20_000


def test_laws_stay_and_where_it_comes_from_is_kept(written: tuple[Path, HostFit, str]) -> None:
    path, _, _ = written
    base, profile = load_profile("h100"), load_profile(path)
    assert [law.model_dump() for law in profile.laws] == [law.model_dump() for law in base.laws]
    assert profile.name == f"{base.name}-prod" and profile.datasheet == base.datasheet
    [costs] = profile.serving
    assert len(costs.digest) == 64 and costs.server == "0.11.0" and costs.source.date == "2026-01-01"
    assert set(costs.held_out) == {
        f"{m}.{s}" for m in ("ttft", "tpot", "e2el") for s in ("mean", "p50", "p99")
    }


def test_the_device_keeps_its_price(written: tuple[Path, HostFit, str]) -> None:
    path, _, _ = written
    assert load_profile(path).device_name == load_profile("h100").name
    command = ["estimate", "--gpu", str(path), "--model", "llama-3.1-8b", "--system", "vllm", "--json"]
    shown = CliRunner().invoke(app, [*command, "--request-rate", "2"])
    assert json.loads(shown.output)["usd_per_million_tokens"]["all"] > 0


def test_fitting_again_replaces_the_same_deployment(
    written: tuple[Path, HostFit, str], tmp_path: Path
) -> None:
    path, _, _ = written
    write_observation(see(VLLM, n=30), tmp_path / "seen.jsonl")
    again = tmp_path / "prod.yaml"
    again.write_bytes(path.read_bytes())
    for system, count in (("vllm", 1), ("tgi", 2)):
        options = ["--gpu", str(again), "--model", "llama-3.1-8b", "--system", system, "--out", str(again)]
        shown = CliRunner().invoke(app, ["calibrate", "fit-host", str(tmp_path / "seen.jsonl"), *options])
        assert shown.exit_code == 0, shown.output
        assert len(yaml.safe_load(again.read_text())["serving"]) == count
    assert load_profile(again).version == 3


def test_what_was_observed_must_be_said(tmp_path: Path) -> None:
    write_observation(see(VLLM, n=20), tmp_path / "seen.jsonl")
    command = ["calibrate", "fit-host", str(tmp_path / "seen.jsonl"), "--out", str(tmp_path / "p.yaml")]
    shown = CliRunner().invoke(app, [*command, "--gpu", "h100", "--system", "vllm"])
    assert "--model: say what was observed" in str(shown.exception)
    bad = CliRunner().invoke(
        app, [*command, "--gpu", "h100", "--system", "vllm", "--model", "llama-3.1-8b", "--hold-out", "1"]
    )
    assert "--hold-out 1: must be between 0 and 1" in str(bad.exception)
