from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from simulator.results import FINISHED, InterTokenLatency, RecordsBuilder, StepSeries, Summary, summarize

Request = tuple[float, float, int, list[float]]
"""(arrival, first scheduled, input length, times of the tokens), times in s."""

THREE: list[Request] = [
    (0.0, 0.0, 100, [0.1, 0.2, 0.3, 0.4, 0.5]),
    (1.0, 1.25, 200, [1.5, 1.75, 2.5]),
    (2.0, 2.0, 300, [2.3]),
]


def fill(requests: Sequence[Request]) -> tuple[RecordsBuilder, InterTokenLatency, StepSeries]:
    """What a driver would have written for finished requests, one row of the series per token time."""
    builder, itl = RecordsBuilder(len(requests)), InterTokenLatency()
    series = StepSeries(num_gpu_blocks=100, block_size=16, start_time=min(r[0] for r in requests))
    for i, (arrival, scheduled, input_length, tokens) in enumerate(requests):
        builder.arrival_time[i], builder.first_scheduled_time[i] = arrival, scheduled
        builder.first_token_time[i], builder.finish_time[i] = tokens[0], tokens[-1]
        builder.input_length[i], builder.output_length[i] = input_length, len(tokens)
        builder.status[i], builder.replica[i] = FINISHED, 0
        itl.add_many(np.diff(tokens), 1)
    for time in sorted(t for r in requests for t in r[3]):
        series.append(time, 0.0, 1, 1, 0, 1, 0, 1, 10, 5)
    return builder, itl, series


@pytest.fixture(scope="session")
def filled() -> Callable[[Sequence[Request]], tuple[RecordsBuilder, InterTokenLatency, StepSeries]]:
    return fill


@pytest.fixture
def three() -> tuple[RecordsBuilder, InterTokenLatency, StepSeries]:
    return fill(THREE)


@pytest.fixture
def summary(three: tuple[RecordsBuilder, InterTokenLatency, StepSeries]) -> Summary:
    builder, itl, series = three
    return summarize(builder.build(), itl, series, goodput={"ttft": 400.0, "tpot": 200.0})
