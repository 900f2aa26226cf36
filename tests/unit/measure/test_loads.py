"""The engine at shares of its own capacity: on a clock whose steps all last the same the capacity is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibrate.__main__ import main  # noqa: E402
from calibrate.measure.loads import Loads, plan_load, read_loads  # noqa: E402
from calibrate.recorded import find_recordings, read_recording  # noqa: E402
from engine import LLM  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.realtime import RecordedClock  # noqa: E402
from simulator.errors import ConfigurationError, InputError  # noqa: E402

TINY = DecoderConfig("llama", 300, 16, 16, 1, 1, 1, 16, max_position=128)
STEP, SEATS, TOKENS = 0.01, 4, 10


@pytest.fixture(scope="module")
def llm() -> LLM:
    torch.set_num_threads(1)
    return LLM(TINY, num_gpu_blocks=100, block_size=4, max_num_seqs=SEATS, max_num_batched_tokens=64)


def make_loads(llm: LLM, seconds: float, lengths: list[tuple[int, int]], **options: Any) -> Loads:
    """*seconds* of a clock that stands still between runs."""
    return Loads(llm, lengths, lambda: RecordedClock([STEP]), seconds, now=lambda: 0.0, **options)


def test_loads_are_shares_of_the_capacity(llm: LLM, tmp_path: Path) -> None:
    """4 seats, 10 steps of 10 ms to an answer: 40 requests/s; a load of 0.5 keeps the batch half full."""
    said: list[str] = []
    paths = list(make_loads(llm, 9.0, [(8, TOKENS)], say=said.append).run([0.5], tmp_path))
    capacity = json.loads((tmp_path / "vllm-capacity.json").read_text())["requests_per_s"]
    assert capacity == pytest.approx(SEATS / (TOKENS * STEP), rel=0.1)
    assert [path.name for path in paths] == ["vllm-50.json.gz"]
    assert find_recordings([tmp_path]) == paths
    half = read_recording(paths[0])
    assert (half["load"], half["cut_short"]) == (0.5, False)
    arrivals = np.array([request["arrival"] for request in half["requests"]])
    assert len(arrivals) / arrivals[-1] == pytest.approx(0.5 * capacity, rel=0.25)
    busy = sum(step["seconds"] for step in half["steps"])
    running = sum(step["batch"] * step["seconds"] for step in half["steps"])
    assert busy < arrivals[-1] + 1.0 and 1.0 < running / busy < SEATS
    assert said[0].startswith("capacity: ") and "50 %:" in said[1]


def test_a_run_whose_time_is_over_is_kept_and_marked(llm: LLM, tmp_path: Path) -> None:
    """At twice the capacity nothing is done in time."""
    [path] = make_loads(llm, 2.0, [(8, TOKENS)], say=lambda text: None).run([2.0], tmp_path)
    recording = read_recording(path)
    assert recording["cut_short"]
    assert {"finished", "running"} == {request["status"] for request in recording["requests"]}


def test_too_little_time_is_said(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"only \d requests ended .* give a larger --budget"):
        list(make_loads(llm, 0.1, [(8, TOKENS)]).run([0.5], tmp_path))


def test_requests_that_do_not_fit_are_left_out(llm: LLM, tmp_path: Path) -> None:
    loads = make_loads(llm, 3.0, [(500, 10), (8, 5)], say=lambda text: None)
    [path] = loads.run([0.5], tmp_path)
    assert {request["input_length"] for request in read_recording(path)["requests"]} == {8}
    with pytest.raises(ConfigurationError, match="no request of the trace fits --max-model-len 128"):
        list(make_loads(llm, 8.0, [(500, 10)]).run([0.5], tmp_path))


def test_arrivals_are_poisson_at_the_rate() -> None:
    jobs = plan_load([(10, 20), (30, 40)], 50.0, 100.0, 0)
    gaps = np.diff([job.arrival for job in jobs])
    assert len(jobs) == 5000 and gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.05)
    assert jobs == plan_load([(10, 20), (30, 40)], 50.0, 100.0, 0)
    assert {(job.input_length, job.output_length) for job in jobs} == {(10, 20), (30, 40)}


@pytest.mark.parametrize("text", ["", "half", "0.5,,1", "0", "3"])
def test_bad_loads(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be shares of the capacity"):
        read_loads(text)


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no recording"):
        find_recordings([tmp_path])


def test_a_policy_that_fails_does_not_lose_the_others(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 blocks of 16 tokens are less than a block of hf-continuous; vllm is recorded all the same."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 4, "output_length": 2}\n')
    arguments = [
        "loads",
        "--device",
        "cpu",
        "--model",
        str(tiny_model),
        "--trace",
        str(trace),
        "--out",
        str(tmp_path),
    ]
    arguments += [
        "--system",
        "hf-continuous,vllm",
        "--loads",
        "0.5",
        "--budget",
        "2s",
        "--num-gpu-blocks",
        "15",
    ]
    limits = ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--max-model-len", "64"]
    assert main([*arguments, *limits]) == 0
    assert "hf-continuous: failed: num_gpu_blocks 15 of 16 tokens" in capsys.readouterr().out
    assert [path.name for path in find_recordings([tmp_path])] == ["vllm-50.json.gz"]
