"""The queue of one server with fixed service, by Lindley's recursion, below and above its capacity."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.results import FINISHED, Records, RecordsBuilder, detect_overload


def single_server(load: float, n: int, seed: int, service: float = 1.0) -> Records:
    return served(np.cumsum(np.random.default_rng(seed).exponential(service / load, n)), service)


def served(arrivals: np.ndarray, service: float = 1.0) -> Records:
    builder, free = RecordsBuilder(len(arrivals)), 0.0
    for i, arrival in enumerate(arrivals.tolist()):
        begin = max(arrival, free)
        free = begin + service
        builder.arrival_time[i], builder.first_scheduled_time[i] = arrival, begin
        builder.first_token_time[i] = builder.finish_time[i] = free
        builder.output_length[i], builder.status[i] = 1, FINISHED
    return builder.build()


@pytest.mark.parametrize("seed", range(10))
def test_above_capacity_the_rates_are_told(seed: int) -> None:
    overload = detect_overload(single_server(1.5, 2000, seed))
    assert overload is not None and overload.overloaded
    assert overload.served_rate == pytest.approx(1.0, rel=0.01)
    assert overload.offered_rate == pytest.approx(1.5, rel=0.12)
    assert overload.waiting_at_last_arrival == pytest.approx(2000 * (1 - 1 / 1.5), rel=0.15)
    assert f"{overload.waiting_at_last_arrival:,} requests" in overload.text()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("load", [0.3, 0.8, 0.95])
def test_below_capacity_nothing_is_said(load: float, seed: int) -> None:
    overload = detect_overload(single_server(load, 2000, seed))
    assert overload is not None and not overload.overloaded
    assert overload.text() == ""


def test_too_little_to_tell() -> None:
    assert detect_overload(single_server(2.0, 20, 0)) is None
    burst = RecordsBuilder(100)
    for i in range(100):
        burst.arrival_time[i], burst.status[i] = 0.0, 2
    assert detect_overload(burst.build()) is None


def test_requests_that_never_ran_are_still_in_the_queue() -> None:
    builder = RecordsBuilder(1000)
    for i in range(1000):
        builder.arrival_time[i], builder.status[i] = float(i), 2
    overload = detect_overload(builder.build())
    assert overload is not None and overload.overloaded
    assert overload.waiting_at_last_arrival == 1000 and overload.served_rate == 0


def test_a_burst_that_drains_is_no_overload() -> None:
    burst, after = np.linspace(0, 100, 1500), np.linspace(101, 1000, 450)
    overload = detect_overload(served(np.concatenate((burst, after))))
    assert overload is not None and overload.waiting_at_last_arrival > 800
    assert not overload.overloaded
