"""``summary.json``: vLLM's keys in vLLM's units, and ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulator.errors import ConfigurationError
from simulator.results import REJECTED, Summary, summarize

VLLM_KEYS = {
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
    "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests",
    *(f"{word}_ttft_ms" for word in ("mean", "median", "std", "p99")),
    *(f"{word}_tpot_ms" for word in ("mean", "median", "std", "p99")),
    *(f"{word}_itl_ms" for word in ("mean", "median", "std", "p99")),
    *(f"{word}_e2el_ms" for word in ("mean", "median", "std", "p99")),
}  # fmt: skip
OUR_KEYS = {
    "injected", "rejected", "cancelled", "lost", "running", "waiting", "swapped", "in_transfer",
    "preemptions",
    "prefix_cache_hit_rate", "cached_tokens", "kv_cache_usage_mean", "kv_cache_usage_max", "mean_batch_size",
    "fragmentation", "mean_queue_time_ms",
}  # fmt: skip
ARRAYS = {"input_lens", "output_lens", "ttfts", "latencies", "start_times", "queue_times", "errors"}


def test_keys(summary: Summary) -> None:
    result = summary.to_json(metadata={"model_id": "m"})
    assert result.keys() >= VLLM_KEYS | OUR_KEYS | {"model_id"}
    assert not ARRAYS & result.keys()
    assert set(result["fragmentation"]) == {"reserved", "internal", "external", "shared"}
    json.dumps(result, allow_nan=False)


def test_arrays_are_seconds_and_in_the_order_of_the_trace(three: Any) -> None:
    builder, itl, series = three
    builder.output_length[2] = 0
    builder.first_token_time[2] = builder.first_scheduled_time[2] = float("nan")
    builder.leave(2, REJECTED, "prompt of 300 tokens exceeds max_model_len 256", 2.0)
    result = summarize(builder.build(), itl, series).to_json(detailed=True)
    assert result.keys() >= ARRAYS
    assert result["input_lens"] == [100, 200, 300]
    assert result["ttfts"] == [pytest.approx(0.1), pytest.approx(0.5), None]
    assert result["errors"] == ["", "", "prompt of 300 tokens exceeds max_model_len 256"]
    assert result["reasons"]["rejected"] == {"prompt of 300 tokens exceeds max_model_len 256": 1}
    states = (
        "completed",
        "running",
        "waiting",
        "swapped",
        "in_transfer",
        "rejected",
        "failed",
        "cancelled",
        "lost",
    )
    assert result["injected"] == 3 == sum(result[name] for name in states)


def test_student_interval_of_five_replications(three: Any) -> None:
    builder, itl, series = three
    ends = [9.0, 9.5, 10.0, 10.5, 11.0]  # mean 10, s = √0.625
    runs = [summarize(builder.build(), itl, series, end_time=end) for end in ends]
    mean = runs[0].with_intervals(runs, level=0.95)
    half = 2.776445 * (0.625 / 5) ** 0.5  # t with 4 degrees of freedom, tabulated
    assert mean.intervals is not None
    assert mean.intervals.values["duration"] == pytest.approx((10 - half, 10 + half), rel=1e-6)
    assert mean["duration"] == 10.0 and mean["completed"] == 3
    further = runs[0].with_intervals(runs, level=0.95, of="run")
    assert further.intervals is not None
    assert further.intervals.values["duration"][1] == pytest.approx(10 + half * 6**0.5, rel=1e-6)
    assert further.to_json()["intervals"]["replications"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": 1.5}, "1.5"), ({"of": "median"}, "'median'")],
)
def test_interval_options_are_checked(summary: Summary, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        summary.with_intervals([summary, summary], **options)
    with pytest.raises(ConfigurationError, match="at least 2"):
        summary.with_intervals([summary])
