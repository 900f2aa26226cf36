"""What was seen beside its simulation: exact where the machine is the simulator's own, off where it is another."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrate.fit.host import fit_host_costs
from calibrate.fit.host_profile import write_host_profile
from calibrate.observe.journal import read_observation, write_observation
from calibrate.observe.observation import Observation
from calibrate.observe.prediction import predict_observation
from simulator.cli import app
from simulator.errors import ConfigurationError, InputError

from .known import VLLM, see


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    path = tmp_path_factory.mktemp("seen") / "seen.jsonl"
    write_observation(see(VLLM), path)
    return read_observation(path)


def test_as_shipped_the_steps_are_too_short_and_fitted_they_are_right(
    seen: Observation, tmp_path: Path
) -> None:
    shipped = predict_observation(seen, VLLM.resolve())
    assert shipped.error("tpot", "mean") < -0.1
    write_host_profile(fit_host_costs(seen, VLLM), seen, "h100", tmp_path / "prod.yaml")
    fitted = predict_observation(seen, VLLM.model_copy(update={"gpu": str(tmp_path / "prod.yaml")}).resolve())
    for metric, statistic in (("tpot", "mean"), ("tpot", "p99"), ("e2el", "p50"), ("throughput", "total")):
        assert abs(fitted.error(metric, statistic)) < 0.02, metric
    assert abs(fitted.error("running", "mean")) < 0.1  # its samples are at steps, ours over time
    worse, better = shipped.agreement().set_index("metric"), fitted.agreement().set_index("metric")
    assert better.loc["tpot", "median"] < 0.02 < worse.loc["tpot", "median"]
    assert (
        better.loc["tpot", "distance"] < worse.loc["tpot", "distance"] == 1.0
        or worse.loc["tpot", "distance"] > 0.3
    )


def test_the_command_prints_it_and_writes_tables(seen: Observation, tmp_path: Path) -> None:
    command = [
        "calibrate",
        "predict",
        str(seen.path),
        "--gpu",
        "h100",
        "--model",
        "llama-3.1-8b",
        "--system",
        "vllm",
    ]
    shown = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    for word in (
        "seen",
        "simulator",
        "ttft",
        "throughput",
        "kv_usage",
        "distance of distributions",
        "host costs:",
    ):
        assert word in shown.output
    assert len((tmp_path / "out" / "requests.csv").read_text().splitlines()) == 1 + len(seen.finished)
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_validate_sends_an_observation_where_it_belongs(seen: Observation) -> None:
    shown = CliRunner().invoke(app, ["calibrate", "validate", "p.yaml", "--recorded", str(seen.path)])
    assert isinstance(shown.exception, InputError) and "`sim calibrate predict`" in str(shown.exception)


def test_nothing_in_common_is_said(seen: Observation) -> None:
    tiny = VLLM.model_copy(update={"max_model_len": 16})
    with pytest.raises(ConfigurationError, match="no request finished both"):
        predict_observation(seen, tiny.resolve())
