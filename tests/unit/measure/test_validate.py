"""The real engine and the simulator run the same trace: structure held tightly, times loosely (machines are shared).

The tight part runs the simulator on the known machine as if it were the engine, so that every difference is the fit's.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from typer.testing import CliRunner  # noqa: E402

from calibrate.fit.raw import fit_raw, host_traits  # noqa: E402
from calibrate.measure.recording import Job, ThreadClock, record_run  # noqa: E402
from calibrate.recorded import read_recording, resolve_recorded  # noqa: E402
from calibrate.step_errors import summarize_steps, worst_part  # noqa: E402
from calibrate.validation import compare_run, distance, write_end_to_end  # noqa: E402
from engine import LLM  # noqa: E402
from hwprofiles import load_profile  # noqa: E402
from simulator.cli import app  # noqa: E402
from simulator.errors import InputError  # noqa: E402
from simulator.simulation import simulate  # noqa: E402
from simulator.steptime import StepTime  # noqa: E402
from simulator.steptime.laws import LawSet  # noqa: E402
from simulator.workload import Trace  # noqa: E402

from .conftest import ENGINE_LIMITS, known_profile  # noqa: E402


@pytest.fixture(scope="module")
def profile(known_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fitted profile of the known machine."""
    return fit_raw(known_raw, tmp_path_factory.mktemp("fit") / "fitted.yaml").path


@pytest.fixture(scope="module")
def recording(tiny_model: Path) -> dict[str, Any]:
    """The real engine on a few requests."""
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(0.02, 16))
    jobs = [Job(float(at), int(rng.integers(4, 120)), int(rng.integers(1, 20))) for at in arrivals]
    torch.set_num_threads(1)
    llm = LLM(str(tiny_model), device="cpu", load_format="dummy", num_gpu_blocks=64, **ENGINE_LIMITS)
    return record_run(llm, jobs, ThreadClock())


def test_waiting_costs_nothing_on_the_thread_clock() -> None:
    clock = ThreadClock(lambda: 5.0)
    clock.wait_until(8.0)
    assert clock() == 8.0
    clock.wait_until(7.0)
    assert clock() == 8.0


def test_every_request_and_step_is_recorded(recording: dict[str, Any]) -> None:
    requests, steps = recording["requests"], recording["steps"]
    assert [request["status"] for request in requests] == ["finished"] * 16
    assert all(request["token_times"][0] > request["arrival"] for request in requests)
    computed = sum(step["decodes"] + sum(chunk for chunk, _ in step["prefills"]) for step in steps if step)
    prompts = sum(request["input_length"] for request in requests)
    outputs = sum(len(request["token_times"]) for request in requests)
    assert computed == prompts + outputs - len(requests)  # the last token of each is never computed on
    assert max(step["num_running"] for step in steps) <= ENGINE_LIMITS["max_num_seqs"]


def test_a_recording_travels_as_json_and_is_compared(
    recording: dict[str, Any], profile: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """On a machine with other laws every step is off by the same kind of factor, and the comparison says so."""
    file = tmp_path / "recording.json"
    file.write_text(json.dumps(recording))
    arguments = [
        "calibrate",
        "validate",
        str(profile),
        "--recorded",
        str(file),
        "--out",
        str(tmp_path / "out"),
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for word in ("ttft", "tpot", "itl", "throughput", "kv_blocks", "decode", "prefill", "are the engine's"):
        assert word in shown.output
    assert (tmp_path / "out" / "recording.metrics.csv").exists()
    page = (tmp_path / "out" / "validation.html").read_text()
    for word in ("Distributions", "Drift", "largest error", "Steps by kind and batch size"):
        assert word in page
    assert 'src="http' not in page and "<link" not in page  # opens without a network
    again = read_recording(tmp_path / "out" / "recording.json.gz")
    assert again == json.loads(file.read_text())
    comparison = compare_run(read_recording(file), str(profile))
    assert len(comparison.steps) == len(recording["steps"])
    assert comparison.result.num_iterations > 0


def test_the_known_machine_finds_its_own_step_errors(recording: dict[str, Any], profile: Path) -> None:
    """Steps as the profile predicts them, but decodes of 4 to 7 rows twice as long: those are named."""
    predicted = compare_run(recording, str(profile)).steps
    slow = {**recording, "steps": [dict(step) for step in recording["steps"]]}
    timed = [step for step in slow["steps"] if "prefills" in step]
    for step, seconds, operators in zip(timed, predicted["predicted"], predicted["operators"], strict=True):
        factor = 2.0 if not step["prefills"] and 4 <= step["decodes"] < 8 else 1.0
        step |= {"device_s": factor * operators, "seconds": seconds + (factor - 1) * operators}
    steps = compare_run(slow, str(profile)).steps
    table = summarize_steps(steps).set_index(["kind", "rows"])
    off = (table["device"] / table["operators"] - 1).to_dict()
    assert off["decode", "4-7"] == pytest.approx(1.0)
    assert all(abs(error) < 1e-6 for (_, rows), error in off.items() if rows not in ("4-7", "all"))
    np.testing.assert_allclose(table["host"], table["host_predicted"], atol=1e-9)
    assert worst_part(steps).startswith("largest error: device time of decode steps, -")


def test_equal_runs_are_equal_request_by_request() -> None:
    assert distance(np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])) == 0.0
    assert distance(np.array([1.0, 2.0]), np.array([5.0, 6.0])) == 1.0
    assert distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 3.5, 4.5, 5.5])) == pytest.approx(0.5)


def test_errors_are_written_into_the_profile(
    recording: dict[str, Any], profile: Path, tmp_path: Path
) -> None:
    mine = tmp_path / profile.name
    mine.write_text(profile.read_text())
    comparison = compare_run({**recording, "load": 0.8}, str(mine))
    write_end_to_end(mine, [comparison])
    write_end_to_end(mine, [comparison])  # the same system and load: replaced
    [run] = load_profile(mine).end_to_end
    assert (run.system, run.load, run.requests, run.same_decisions) == ("vllm", 0.8, 16, True)
    assert run.errors["ttft mean"] == pytest.approx(comparison.error("ttft", "mean"), abs=1e-4)
    other = Path(shutil.copy(mine, tmp_path / "other.yaml"))  # a file may have another name than its profile
    write_end_to_end(other, [replace(comparison, recording={**recording, "load": 0.5})])
    assert [run.load for run in load_profile(other).end_to_end] == [0.5, 0.8]
    assert len(load_profile(mine).end_to_end) == 1


def test_a_recording_cut_short_is_refused(tmp_path: Path, profile: Path) -> None:
    (tmp_path / "recording.json.gz").write_bytes(gzip.compress(b'{"model": "x"}')[:-6])
    with pytest.raises(InputError, match="perhaps cut short"):
        read_recording(tmp_path / "recording.json.gz")
    file = tmp_path / "recording.json"
    file.write_text('{"model": "x", "requests": [')
    with pytest.raises(InputError, match="perhaps cut short"):
        read_recording(file)
    file.write_text('{"model": "x"}')
    with pytest.raises(InputError, match="not a recorded run"):
        read_recording(file)


def test_metrics_of_the_fit_are_those_of_the_machine(
    recording: dict[str, Any], profile: Path, known_raw: Path
) -> None:
    """The known machine and its fit serve a trace that the fit has not seen: every quantile within 1 %."""
    fitted = resolve_recorded(recording, str(profile))
    truth = known_profile()
    old = fitted.steptime
    exact = StepTime(old.model, LawSet.from_profile(truth), None, host_traits(truth.host), old.precision)
    rng = np.random.default_rng(8)
    trace = Trace.from_columns(
        np.cumsum(rng.exponential(0.05, 60)), rng.integers(4, 150, 60), rng.integers(2, 60, 60)
    )
    ours = simulate(trace, fitted)
    theirs = simulate(trace, replace(fitted, steptime=exact))
    for key in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "p50", "p99"):
            name = f"{statistic}_{key}_ms"
            assert ours.summary[name] == pytest.approx(theirs.summary[name], rel=0.01), name


def test_the_simulator_predicts_the_real_engine(tiny_model: Path, real_raw: Path, tmp_path: Path) -> None:
    """Calibrate on this CPU for a few seconds, then predict a run the fit has not seen: within a factor, loosely."""
    fit = fit_raw(real_raw, tmp_path / "here.yaml")
    rng = np.random.default_rng(4)
    jobs = [Job(0.01 * i, int(rng.integers(4, 120)), int(rng.integers(1, 20))) for i in range(24)]
    llm = LLM(str(tiny_model), device="cpu", load_format="dummy", num_gpu_blocks=256, **ENGINE_LIMITS)
    comparison = compare_run(record_run(llm, jobs, ThreadClock()), str(fit.path))
    assert abs(comparison.error("duration", "total")) < 0.6
    assert abs(comparison.error("tpot", "mean")) < 0.6
    assert abs(comparison.error("ttft", "mean")) < 1.0
