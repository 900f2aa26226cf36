"""Comparing runs, and saying what a change is made of."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.breakdown import request_parts, time_breakdown
from simulator.comparison import compare, explain
from simulator.errors import ConfigurationError


def traffic(rate: float, n: int = 150) -> Trace:
    rng = np.random.default_rng(5)
    return Trace.from_columns(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(50, 900, n), rng.integers(2, 200, n)
    )


@pytest.fixture(scope="module")
def pair() -> list:  # type: ignore[type-arg]
    trace = traffic(8.0)
    return [simulate(trace, Deployment(gpu=gpu)) for gpu in ("h100", "l40s")]


def test_the_parts_of_a_request_are_its_latency(pair: list) -> None:  # type: ignore[type-arg]
    for result in pair:
        assert sum(request_parts(result).values()) * 1e3 == pytest.approx(result.summary["mean_e2el_ms"])


def test_the_causes_add_up_to_the_change(pair: list) -> None:  # type: ignore[type-arg]
    causes = explain(*pair)
    change = pair[1].summary["mean_e2el_ms"] - pair[0].summary["mean_e2el_ms"]
    assert sum(cause.change for cause in causes) * 1e3 == pytest.approx(change)
    assert abs(causes[0].change) == max(abs(cause.change) for cause in causes)


def test_the_breakdown_is_the_time_in_iterations(pair: list) -> None:  # type: ignore[type-arg]
    for result in pair:
        busy = sum(series.sum("duration_s") for series in result.series)
        assert sum(time_breakdown(result).values()) == pytest.approx(busy)


def test_a_smaller_memory_is_found_out() -> None:
    trace = traffic(40.0, 400)
    plenty, scarce = (
        simulate(trace, Deployment(num_gpu_blocks=blocks, max_model_len=2000)) for blocks in (20_000, 300)
    )
    assert request_parts(plenty)["waiting for KV memory"] == 0
    causes = explain(plenty, scarce)
    assert causes[0].name == "waiting for KV memory"


def test_one_row_per_metric_with_changes_against_the_first(pair: list) -> None:  # type: ignore[type-arg]
    rows = {row.name: row for row in compare(pair)}
    tpot = rows["TPOT mean"]
    assert tpot.values == [pair[0].summary["mean_tpot_ms"], pair[1].summary["mean_tpot_ms"]]
    assert tpot.changes == [0.0, pytest.approx(tpot.values[1] / tpot.values[0] - 1)]


def test_what_cannot_be_compared_is_refused(pair: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigurationError, match="at least 2 alternatives, got 1"):
        compare(pair[:1])
    with pytest.raises(ConfigurationError, match="one trace"):
        compare([pair[0], simulate(traffic(8.0, 20), Deployment())])
