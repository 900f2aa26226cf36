"""Nothing is lost: what must not be reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results import (
    CANCELLED,
    FAILED,
    FINISHED,
    LOST,
    REJECTED,
    RUNNING,
    STATUS,
    WAITING,
    ConservationError,
    RecordsBuilder,
    check_conservation,
    summarize,
)


def one(status: int, **times: float) -> RecordsBuilder:
    builder = RecordsBuilder(1)
    builder.status[0] = status
    builder.arrival_time[0] = 0.0
    for name, value in times.items():
        getattr(builder, name)[0] = value
    return builder


@given(st.lists(st.integers(-1, len(STATUS) - 1), min_size=1, max_size=40))
def test_every_request_is_in_one_state(states: list[int]) -> None:
    builder = RecordsBuilder(len(states))
    for i, status in enumerate(states):
        builder.status[i] = status
        if status >= 0:
            builder.arrival_time[i] = float(i)
        if status in (REJECTED, FAILED, CANCELLED, LOST):
            builder.leave(i, status, f"because {status}", i + 1.0)
        if status == FINISHED:
            builder.finish_time[i] = i + 1.0
    records = builder.build()
    check_conservation(records)
    assert sum(records.counts().values()) == sum(status >= 0 for status in states)
    assert records.reason_counts(LOST) == ({f"because {LOST}": states.count(LOST)} if LOST in states else {})
    with pytest.raises(ConservationError, match="injected"):
        check_conservation(records, injected=sum(records.counts().values()) + 1)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (one(-1), "injected 1 requests, but 0 = 0"),
        (one(RUNNING, arrival_time=math.nan), "injected 0 requests, but 1 running = 1"),
        (one(REJECTED, finish_time=1.0), "without a reason"),
        (one(FINISHED), "without a finish_time"),
        (one(FINISHED, finish_time=2.0, output_length=3), "without a first_token_time"),
        (one(WAITING, first_scheduled_time=-1.0), "first_scheduled_time before"),
        (one(FINISHED, first_token_time=3.0, finish_time=2.0), "finish_time before"),
    ],
)
def test_a_violation_raises(builder: RecordsBuilder, message: str) -> None:
    with pytest.raises(ConservationError, match=message):
        check_conservation(builder.build())


def test_summarize_refuses_a_run_that_lost_a_request(three: Any) -> None:
    builder, itl, series = three
    builder.status[1] = -1
    with pytest.raises(ConservationError, match="injected 3 requests, but 2 finished = 2"):
        summarize(builder.build(), itl, series)


def test_the_last_bit_of_a_clock_is_no_violation() -> None:
    later = 1000.0
    check_conservation(
        one(FINISHED, arrival_time=later, first_scheduled_time=later * (1 - 1e-15), finish_time=later).build()
    )
