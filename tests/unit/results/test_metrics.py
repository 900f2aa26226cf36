"""vLLM's definitions: a hand-computed example of three requests, and a reference that keeps every token."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.results import Summary, summarize

pytestmark = pytest.mark.filterwarnings("error")

BY_HAND = {
    "completed": 3,
    "failed": 0,
    "duration": 2.5,
    "total_input_tokens": 600,
    "total_output_tokens": 9,
    "request_throughput": 1.2,
    "request_goodput": 0.8,  # the first, and the third, whose TPOT counts as 0
    "output_throughput": 3.6,
    "total_token_throughput": 243.6,
    "max_output_tokens_per_s": 5.0,
    "max_concurrent_requests": 2,
    "mean_ttft_ms": 300.0,
    "median_ttft_ms": 300.0,
    "p99_ttft_ms": 496.0,
    "std_ttft_ms": 100 * math.sqrt(8 / 3),
    "mean_tpot_ms": 300.0,
    "p99_tpot_ms": 496.0,
    "mean_itl_ms": 1400 / 6,
    "median_itl_ms": 100.0,
    "p99_itl_ms": 725.0,
    "max_itl_ms": 750.0,
    "mean_e2el_ms": 2300 / 3,
    "p99_e2el_ms": 1480.0,
    "mean_queue_time_ms": 250 / 3,
    "injected": 3,
}


@pytest.mark.parametrize("key", BY_HAND)
def test_three_requests_by_hand(summary: Summary, key: str) -> None:
    assert summary[key] == pytest.approx(BY_HAND[key], rel=1e-12)


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[float, float, int, list[float]]]:
    gap = st.floats(1e-3, 3.0)
    requests = []
    for _ in range(draw(st.integers(1, 12))):
        arrival, wait = draw(st.floats(0, 20)), draw(st.floats(0, 2))
        gaps = draw(st.lists(gap, min_size=1, max_size=12))
        tokens = (arrival + wait + np.cumsum(gaps)).tolist()
        requests.append((arrival, arrival + wait, draw(st.integers(1, 5000)), tokens))
    return requests


def per_token_reference(requests: Any, goodput: dict[str, float]) -> dict[str, float]:
    """Every metric from the times of all tokens, the slow way."""
    start = min(r[0] for r in requests)
    duration = max(r[3][-1] for r in requests) - start
    values: dict[str, list[float]] = {"ttft": [], "tpot": [], "itl": [], "e2el": []}
    good, windows, active = 0, {}, {}
    for arrival, _, _, tokens in requests:
        ttft, e2el, n = tokens[0] - arrival, tokens[-1] - arrival, len(tokens)
        tpot = (e2el - ttft) / (n - 1) if n > 1 else 0.0
        values["ttft"].append(ttft)
        values["e2el"].append(e2el)
        values["tpot"] += [tpot] * (n > 1)
        values["itl"] += [b - a for a, b in itertools.pairwise(tokens)]
        good += all({"ttft": ttft, "tpot": tpot, "e2el": e2el}[k] <= v / 1000 for k, v in goodput.items())
        for time in tokens:
            windows[int(time - start)] = windows.get(int(time - start), 0) + 1
        for second in range(int(arrival - start), int(tokens[-1] - start) + 1):
            active[second] = active.get(second, 0) + 1
    result = {
        "request_throughput": len(requests) / duration,
        "output_throughput": sum(len(r[3]) for r in requests) / duration,
        "request_goodput": good / duration,
        "max_output_tokens_per_s": max(windows.values()),
        "max_concurrent_requests": max(active.values()),
    }
    for name, seconds in values.items():
        if seconds:
            result |= {
                f"mean_{name}_ms": 1000 * float(np.mean(seconds)),
                f"std_{name}_ms": 1000 * float(np.std(seconds)),
                f"median_{name}_ms": 1000 * float(np.median(seconds)),
                f"p90_{name}_ms": 1000 * float(np.percentile(seconds, 90)),
                f"p99.9_{name}_ms": 1000 * float(np.percentile(seconds, 99.9)),
            }
    return result


@settings(max_examples=60, deadline=None)
@given(
    requests=runs(),
    objectives=st.fixed_dictionaries({"ttft": st.floats(1, 3000), "tpot": st.floats(1, 3000)}),
)
def test_agrees_with_a_reference_that_keeps_every_token(filled: Any, requests: Any, objectives: Any) -> None:
    builder, itl, series = filled(requests)
    found = summarize(builder.build(), itl, series, goodput=objectives, percentiles=(90, 99.9))
    for key, expected in per_token_reference(requests, objectives).items():
        assert found[key] == pytest.approx(expected, rel=1e-9, abs=1e-6), key  # gaps are kept to 1 ns


def test_a_run_without_finished_requests_has_no_latency_and_no_warning(three: Any) -> None:
    builder, itl, series = three
    itl.clear()
    for i in range(3):
        builder.status[i] = -1
        builder.arrival_time[i] = builder.first_scheduled_time[i] = math.nan
        builder.first_token_time[i] = builder.finish_time[i] = math.nan
    found = summarize(builder.build(), itl, series)
    assert found["completed"] == 0 and found["request_throughput"] is None
    assert math.isnan(found["mean_ttft_ms"]) and found.to_json()["mean_ttft_ms"] is None


def test_warmup_leaves_early_requests_out(three: Any) -> None:
    builder, itl, series = three
    found = summarize(builder.build(), itl, series, warmup=1.0)
    assert found["completed"] == 2
    assert found["duration"] == pytest.approx(1.5)
    assert found["mean_ttft_ms"] == pytest.approx(400.0)
    assert found["injected"] == 3


def test_duration_runs_to_the_cut_off(three: Any) -> None:
    builder, itl, series = three
    assert summarize(builder.build(), itl, series, end_time=10.0)["duration"] == 10.0


def test_replicas_add_up(filled: Any) -> None:
    requests = [(0.0, 0.0, 10, [0.5, 0.9]), (0.1, 0.1, 10, [0.4, 0.6])]
    builder, itl, _ = filled(requests)
    series = [filled([request])[2] for request in requests]
    found = summarize(builder.build(), itl, series)
    assert found["max_output_tokens_per_s"] == 4
    assert found["iterations"] == 4
