"""What the client records is what the server did, also where the server fails half-way or the user has had enough."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")
from typer.testing import CliRunner

from calibrate.observe.journal import read_observation
from calibrate.observe.observation import COMPLETE, INTERRUPTED, Observation
from calibrate.observe.prompts import HIGH_IDS, LOW_IDS, TextScale, prompt_tokens
from calibrate.observe.replay import GONE, Settings, observe
from calibrate.observe.server import cache_size, metrics_sample, parse_metrics
from simulator.cli import app
from simulator.errors import InputError
from simulator.workload import read_trace

from .conftest import GAP, FakeServer

Fake = Callable[..., FakeServer]
METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="1200",engine="0"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="1201",engine="1"} 1.0
"""


def run(fake: FakeServer, trace: Path, out: Path, **settings: Any) -> Observation:
    return observe(read_trace(trace), Settings(fake.url, interval=0.05, **settings), out)


def test_every_token_has_the_time_of_the_chunk_that_brought_it(
    fake: Fake, trace_file: Any, tmp_path: Path
) -> None:
    server = fake(metrics=METRICS)
    seen = run(server, trace_file((0, 40, 7), (0.05, 60, 1)), tmp_path / "o.jsonl")
    first, second = seen.requests
    assert (first.output_length, second.output_length) == (7, 1)
    gaps = np.diff(first.token_times)
    assert [g < GAP / 2 for g in gaps] == [False, True, False, True, False, True]  # two tokens a chunk
    assert first.token_times[-1] - first.token_times[0] >= 3 * GAP
    assert second.sent >= 0.05 and second.first_token - second.sent >= GAP
    assert (first.status, first.cached_tokens, seen.ended) == ("finished", 16, COMPLETE)
    assert (seen.header.num_gpu_blocks, seen.header.block_size) == (2401, 16)
    assert seen.samples[0].running == 7 and seen.samples[0].kv_usage == 0.5
    bodies = server.script.seen[-2:]
    assert [len(body["prompt"]) for body in bodies] == [40, 60]
    assert all(body["ignore_eos"] and body["stream"] for body in bodies)


def test_it_reads_back_as_the_table_of_a_run(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    seen = run(fake(metrics=METRICS), trace_file((0, 40, 7), (0.02, 60, 5)), tmp_path / "o.jsonl")
    read = read_observation(tmp_path / "o.jsonl")
    assert read.header == seen.header and len(read.samples) == len(seen.samples)
    for ours, theirs in zip(read.requests, seen.requests):
        assert ours.token_times == pytest.approx(theirs.token_times, abs=1e-6)
        assert (ours.id, ours.status, ours.input_length) == (theirs.id, theirs.status, theirs.input_length)
    summary = read.summary()
    spans = [r.finish - r.first_token for r in seen.requests]
    tpot = 1e3 * np.mean([spans[0] / 6, spans[1] / 4])
    assert summary["mean_tpot_ms"] == pytest.approx(tpot, rel=1e-3)
    assert (summary["completed"], summary["total_output_tokens"]) == (2, 12)
    frame = read.records().to_frame()
    assert list(frame["input_length"]) == [40, 60] and (frame["status"] == "finished").all()


@pytest.mark.parametrize(
    ("fate", "status", "reason", "tokens"),
    [
        ("500", "failed", "HTTP 500: no luck with 77", 0),
        ("429", "rejected", "HTTP 429: no luck with 77", 0),
        ("hang", "failed", "no data for 0.3 s in mid-answer", 3),
        ("close", "failed", "connection closed in mid-answer", 3),
        ("stop", "failed", "the stream ended in mid-answer", 3),
        ("garbage", "failed", "the server sent what is not JSON in mid-answer", 3),
        ("error", "failed", "the server said: the engine died in mid-answer", 3),
    ],
)
def test_a_broken_answer_is_kept_and_marked(
    fake: Fake, trace_file: Any, tmp_path: Path, fate: str, status: str, reason: str, tokens: int
) -> None:
    server = fake(fates={77: fate})
    seen = run(
        server, trace_file((0, 40, 6), (0.01, 77, 9), (0.02, 41, 6)), tmp_path / "o.jsonl", timeout=0.3
    )
    whole, broken, other = read_observation(tmp_path / "o.jsonl").requests
    assert (whole.status, other.status) == ("finished", "finished")
    assert (broken.status, broken.reason, broken.output_length) == (status, reason, tokens)
    assert len(broken.token_times) == tokens and broken.finish >= broken.sent
    assert seen.reasons() == {reason: 1} and seen.ended == COMPLETE
    assert len(seen.trace()) == (3 if tokens else 2)  # what came of it was work for the server


def test_failures_are_said_and_set_the_exit_code(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    server, out = fake(fates={77: "500", 78: "short"}), tmp_path / "o.jsonl"
    trace = trace_file((0, 77, 6), (0, 78, 6), (0, 40, 6))
    shown = CliRunner().invoke(
        app, ["calibrate", "observe", "--url", server.url, "--trace", str(trace), "--out", str(out)]
    )
    assert shown.exit_code == 1, shown.output
    assert "requests: 1 failed, 2 finished" in shown.output
    assert "1 × HTTP 500: no luck with 77" in shown.output
    assert "1 answers do not have the length that was asked for" in shown.output
    assert "Mean TTFT (ms)" in shown.output and "Simulator" not in shown.output


def test_nobody_there_is_one_line(trace_file: Any, tmp_path: Path) -> None:
    trace = read_trace(trace_file((0, 40, 6)))
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9: cannot be reached: connection refused$"):
        observe(trace, Settings("http://127.0.0.1:9/v1/"), tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_server_that_goes_away_ends_the_run(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    server = fake()
    trace = trace_file(*[(0.05 * i, 40, 8) for i in range(40)], (600, 40, 2))
    threading.Timer(0.5, server.vanish).start()
    seen = run(server, trace, tmp_path / "o.jsonl")
    assert seen.ended == GONE and seen.partial
    counts = seen.counts()
    assert counts["finished"] >= 1 and counts["not sent"] >= 1 and counts["failed"] >= 10
    assert read_observation(tmp_path / "o.jsonl").counts() == counts


def test_an_interrupted_run_keeps_what_it_saw(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    server, out = fake(), tmp_path / "o.jsonl"
    trace = trace_file((0, 40, 3), (0, 41, 5000), (600, 42, 3))
    arguments = ["observe", "--url", server.url, "--trace", str(trace), "--out", str(out), "--warmup", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from simulator.cli import main; main()", "calibrate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait(lambda: out.exists() and '"finished"' in out.read_text())
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "warning: partial: interrupted" in output and "1 × interrupted in mid-answer" in output
    read = read_observation(out)
    assert read.ended == INTERRUPTED
    assert read.counts() == {"finished": 1, "cancelled": 1, "not sent": 1}
    cancelled = next(request for request in read.requests if request.status == "cancelled")
    assert cancelled.output_length == len(cancelled.token_times) < 5000


def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_killed_run_is_read_as_far_as_it_goes(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    whole = tmp_path / "o.jsonl"
    run(fake(), trace_file((0, 40, 6), (0, 41, 6)), whole)
    lines = whole.read_text().splitlines()
    cut = tmp_path / "cut.jsonl"
    cut.write_text("\n".join([*lines[:2], lines[2][:40]]))
    read = read_observation(cut)
    assert read.ended is None and read.partial and read.counts() == {"finished": 1, "not sent": 1}
    cut.write_text("\n".join([lines[0], lines[1][:40], lines[2]]))
    with pytest.raises(InputError, match=r"cut\.jsonl:2: must be JSON"):
        read_observation(cut)
    cut.write_text('{"requests": []}\n')
    with pytest.raises(InputError, match="is not an observation"):
        read_observation(cut)


# dialects


def test_a_small_vocabulary_gets_small_ids(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    server = fake(vocabulary=300)
    run(server, trace_file((0, 200, 2)), tmp_path / "o.jsonl")
    prompt = server.script.seen[-1]["prompt"]
    assert LOW_IDS[0] <= min(prompt) and max(prompt) < LOW_IDS[1]


def test_without_counts_a_chunk_of_two_tokens_hides_their_times(
    fake: Fake, trace_file: Any, tmp_path: Path
) -> None:
    seen = run(fake(counts=False), trace_file((0, 40, 7)), tmp_path / "o.jsonl")
    [request] = seen.requests
    assert "without continuous_usage_stats" in str(seen.header.endpoint)
    assert (request.output_length, request.token_times) == (7, None)
    assert request.finish - request.first_token >= 3 * GAP
    assert seen.summary()["mean_tpot_ms"] == pytest.approx(1e3 * (request.finish - request.first_token) / 6)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_text_prompts_get_the_length_that_the_server_counts(
    fake: Fake, trace_file: Any, tmp_path: Path, endpoint: str
) -> None:
    seen = run(
        fake(ids=False), trace_file((0, 407, 2), (0, 1001, 2)), tmp_path / "o.jsonl", endpoint=endpoint
    )
    assert [request.input_length for request in seen.requests] == [407, 1001]  # 2 tokens a word, 7 around it


def test_shared_content_is_sent_as_shared_tokens() -> None:
    long = prompt_tokens([(7, 64), (9, 30)], 120, 0, HIGH_IDS)
    short = prompt_tokens([(7, 64), (9, 10)], 90, 1, HIGH_IDS)
    assert long[:74] == short[:74] and long[74:90] != short[74:90]
    assert len(long) == 120 and len(short) == 90
    assert prompt_tokens([(7, 64)], 32, 2, HIGH_IDS) == long[:32]
    assert prompt_tokens([], 64, 0, HIGH_IDS) != prompt_tokens([], 64, 1, HIGH_IDS)


def test_the_scale_of_text_is_a_line_through_two_counts() -> None:
    scale = TextScale.through((16, 39), (256, 519))
    assert (scale.fixed, scale.per_word) == (7, 2)
    assert scale.words(1007) == 500 and scale.words(1) == 1


# closed loops


def test_at_most_so_many_are_in_flight(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    trace = read_trace(trace_file(*[(0, 40, 4)] * 6)).with_max_concurrency(2)
    seen = observe(trace, Settings(fake().url), tmp_path / "o.jsonl")
    starts = np.array([request.sent for request in seen.requests])
    ends = np.array([request.finish for request in seen.requests])
    inside = [(starts <= moment).sum() - (ends < moment).sum() for moment in starts]
    assert max(inside) <= 2 and seen.header.max_concurrency == 2
    assert seen.trace().max_concurrency == 2


def test_a_later_turn_waits_for_the_answer_before_it(fake: Fake, tmp_path: Path) -> None:
    from simulator.workload import Trace

    trace = Trace.from_columns(
        [0.0, np.nan, 0.0], [40, 60, 50], [5, 3, 2], session=[1, 1, -1], turn=[0, 1, 0], delay=[0.0, 0.1, 0.0]
    )
    seen = observe(trace, Settings(fake().url), tmp_path / "o.jsonl")
    by_length = {request.input_length: request for request in seen.requests}
    assert by_length[60].sent >= by_length[40].finish + 0.1
    assert by_length[50].sent < by_length[40].finish
    assert seen.counts() == {"finished": 3}


def test_a_turn_whose_predecessor_failed_is_not_sent(fake: Fake, tmp_path: Path) -> None:
    from simulator.workload import Trace

    trace = Trace.from_columns([0.0, np.nan], [40, 60], [5, 3], session=[1, 1], turn=[0, 1])
    seen = observe(trace, Settings(fake(fates={40: "500"}).url, warmup=0), tmp_path / "o.jsonl")
    assert seen.counts() == {"failed": 1, "not sent": 1}


# metrics


def test_metrics_of_several_engines_are_added() -> None:
    metrics = parse_metrics(METRICS)
    sample = metrics_sample(metrics, 1.5)
    assert sample is not None
    assert (sample.running, sample.waiting, sample.kv_usage, sample.preemptions) == (7, 1, 0.5, 2)
    assert cache_size(metrics) == (2401, 16)
    assert metrics_sample(parse_metrics("up 1\nnonsense"), 0.0) is None
    assert cache_size(parse_metrics('vllm:cache_config_info{num_gpu_blocks="None"} 1')) == (None, None)


def test_old_names_of_the_cache_are_known() -> None:
    sample = metrics_sample(parse_metrics("vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5"), 0.0)
    assert sample is not None and sample.kv_usage == 0.5


def test_options_out_of_bounds_are_refused(trace_file: Any, tmp_path: Path) -> None:
    trace = trace_file((0, 40, 6))
    for wrong in (
        ["--timeout", "0"],
        ["--endpoint", "embeddings"],
        ["--warmup", "-1"],
        ["--rate-scale", "nan"],
    ):
        shown = CliRunner().invoke(
            app, ["calibrate", "observe", "--url", "http://x", "--trace", str(trace), *wrong]
        )
        assert shown.exit_code != 0 and wrong[0] in str(shown.exception), shown.output


def test_the_file_is_json_lines(fake: Fake, trace_file: Any, tmp_path: Path) -> None:
    run(fake(), trace_file((0, 40, 2)), tmp_path / "deep" / "o.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "deep" / "o.jsonl").read_text().splitlines()]
    assert [next(iter(entry)) for entry in entries] == ["observation", "request", "ended"]
