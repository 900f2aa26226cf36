"""What vLLM's benchmark and guidellm wrote reads as the same table, with the figures that they printed themselves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from calibrate.observe.journal import read_observation
from calibrate.observe.result_files import import_file, read_recorded
from simulator.cli import app
from simulator.errors import InputError

GUIDELLM = Path(__file__).parent / "data" / "guidellm-0.8.1.json"
VLLM: dict[str, Any] = {
    "date": "20260814-093000",
    "backend": "vllm",
    "model_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 4,
    "request_rate": 2.0,
    "max_concurrency": None,
    "duration": 3.0,
    "completed": 3,
    "failed": 1,
    "total_input_tokens": 600,
    "request_throughput": 1.0,
    "input_lens": [100, 200, 300, 50],
    "output_lens": [3, 4, 1, 0],
    "ttfts": [0.1, 0.2, 0.15, 0.0],
    "itls": [[0.02, 0.03], [0.02, 0.05], [], []],  # the second answer: four tokens in three chunks
    "start_times": [1000.0, 1000.5, 1001.25, 1001.5],
    "errors": ["", "", "", "Traceback (most recent call last):\n  ...\nTimeoutError: nobody came"],
}


def write(tmp_path: Path, *documents: Any) -> Path:
    path = tmp_path / "result.json"
    path.write_text("\n".join(json.dumps(document) for document in documents))
    return path


def test_vllm_bench_requests_keep_their_times(tmp_path: Path) -> None:
    [seen] = import_file(write(tmp_path, VLLM))
    first, second, third, failed = seen.requests
    assert [request.sent for request in seen.requests] == [0.0, 0.5, 1.25, 1.5]
    assert first.token_times == pytest.approx([0.1, 0.12, 0.15])
    assert (second.token_times, second.output_length) == (None, 4)
    assert second.finish == pytest.approx(0.5 + 0.2 + 0.07)
    assert (third.output_length, third.finish) == (1, pytest.approx(1.4))
    assert (failed.status, failed.reason) == ("failed", "TimeoutError: nobody came")
    assert (seen.header.date, seen.header.model) == ("2026-08-14", "meta-llama/Llama-3.1-8B")
    assert seen.summary()["mean_ttft_ms"] == pytest.approx(150.0)
    assert len(seen.trace()) == 3


def test_results_without_details_are_refused_with_what_to_do(tmp_path: Path) -> None:
    brief = {name: value for name, value in VLLM.items() if name not in ("ttfts", "itls")}
    with pytest.raises(InputError, match=r"ttfts: has no times per request: run .*--save-detailed"):
        import_file(write(tmp_path, brief))


def test_older_results_say_no_times_of_sending(tmp_path: Path) -> None:
    older = {name: value for name, value in VLLM.items() if name != "start_times"}
    with pytest.raises(InputError, match="does not say when requests were sent"):
        import_file(write(tmp_path, older))
    [seen] = import_file(write(tmp_path, older | {"request_rate": "inf"}))
    assert [request.sent for request in seen.requests] == [0.0] * 4


def test_arrays_of_other_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="itls: holds 3 entries for 4 requests"):
        import_file(write(tmp_path, VLLM | {"itls": VLLM["itls"][:3]}))
    with pytest.raises(InputError, match="an entry per request cannot be used"):
        import_file(write(tmp_path, VLLM | {"ttfts": ["soon", 1, 1, 1]}))


def test_guidellm_agrees_with_its_own_figures() -> None:
    [seen] = import_file(GUIDELLM)
    entries = json.loads(GUIDELLM.read_text())["benchmarks"][0]["requests"]["successful"]
    ours = {request.id: request for request in seen.requests}
    for entry in entries:
        request = ours[entry["request_id"]]
        assert 1e3 * (request.first_token - request.sent) == pytest.approx(
            entry["time_to_first_token_ms"], abs=0.01
        )
        gap = 1e3 * (request.finish - request.first_token) / (request.output_length - 1)
        assert gap == pytest.approx(entry["inter_token_latency_ms"], abs=0.01)
        assert (request.input_length, request.output_length) == (
            entry["prompt_tokens"],
            entry["output_tokens"],
        )
    assert seen.header.source == "guidellm 0.8.1" and seen.header.model == "llama-3.1-8b"
    assert min(request.sent for request in seen.requests) == 0.0
    assert not len(seen.gaps()) and np.isfinite(seen.summary()["mean_tpot_ms"])


def test_guidellm_requests_that_failed_are_marked(tmp_path: Path) -> None:
    report = json.loads(GUIDELLM.read_text())
    groups = report["benchmarks"][0]["requests"]
    groups["errored"] = [groups["successful"].pop()]
    groups["errored"][0]["info"]["error"] = "500 Internal Server Error"
    groups["incomplete"] = [groups["successful"].pop()]
    [seen] = import_file(write(tmp_path, report))
    assert seen.counts() == {"finished": 2, "failed": 1, "cancelled": 1}
    assert "500 Internal Server Error" in seen.reasons()


def test_flat_fields_of_guidellm_0_3_are_read(tmp_path: Path) -> None:
    entry = {"request_id": "a", "prompt_tokens": 10, "output_tokens": 3, "start_time": 50.0, "end_time": 50.9}
    entry |= {"first_token_time": 50.2, "last_token_time": 50.8}
    report = {"benchmarks": [{"requests": {"successful": [entry], "errored": [], "incomplete": []}}]}
    [seen] = import_file(write(tmp_path, report))
    [request] = seen.requests
    assert (request.first_token, request.finish) == (pytest.approx(0.2), pytest.approx(0.8))


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_a_truncated_file_is_one_clear_line(tmp_path: Path, share: float) -> None:
    for text in (GUIDELLM.read_text(), json.dumps(VLLM)):
        path = tmp_path / "cut.json"
        path.write_text(text[: int(share * len(text))])
        shown = CliRunner().invoke(app, ["calibrate", "import", str(path)])
        assert isinstance(shown.exception, InputError) and "\n" not in str(shown.exception)
        assert "is cut short at character" in str(shown.exception)
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"a": nonsense}' + 100 * " {}", "is not JSON at character 6"),
        ('{"a": 1}', "is neither a result of `vllm bench serve` nor of guidellm"),
        ('{"benchmarks": []}', "holds no benchmark"),
        (
            '{"benchmarks": [{"requests": {"successful": [{"info": {"timings": {}}}]}}]}',
            "no request that was sent",
        ),
    ],
)
def test_what_is_no_result_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        import_file(path)


def test_every_run_of_a_file_becomes_an_observation(tmp_path: Path) -> None:
    appended = write(tmp_path, VLLM, copy.deepcopy(VLLM) | {"request_rate": 4.0})
    shown = CliRunner().invoke(
        app, ["calibrate", "import", str(appended), str(GUIDELLM), "--out", str(tmp_path)]
    )
    assert shown.exit_code == 0, shown.output
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert names == [
        "guidellm-0.8.1.observation.jsonl",
        "result-1.observation.jsonl",
        "result-2.observation.jsonl",
    ]
    [whole] = import_file(GUIDELLM)
    read = read_observation(tmp_path / names[0])
    assert [r.output_length for r in read.requests] == [r.output_length for r in whole.requests]
    assert read_recorded(GUIDELLM).header == read.header
    with pytest.raises(InputError, match="holds 2 runs"):
        read_recorded(appended)
