"""A link carries bytes at its bandwidth, and shares it as it says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.link import Link


def arrivals(flows: list[tuple[float, float]], **options: Any) -> list[float]:
    """When each of *flows*, (start s, bytes), has arrived over 100 B/s."""
    env = simpy.Environment()
    link = Link(env, 100.0, **{"latency": 0.0, **options})
    done = [0.0] * len(flows)

    def send(i: int, start: float, size: float) -> Any:
        yield env.timeout(start)
        yield from link.send(size)
        done[i] = env.now

    for i, (start, size) in enumerate(flows):
        env.process(send(i, start, size))
    env.run()
    return done


def test_alone_it_takes_latency_and_bytes_over_bandwidth() -> None:
    assert arrivals([(1.0, 50.0)], latency=0.25) == [pytest.approx(1.75)]
    assert arrivals([(1.0, 50.0)], latency=0.25, sharing="fifo") == [pytest.approx(1.75)]


def test_fair_flows_share_and_fifo_flows_queue() -> None:
    flows = [(0.0, 100.0), (0.5, 100.0)]
    # half of the first is through when the second comes; then each gets half
    assert arrivals(flows) == pytest.approx([1.5, 2.0])
    assert arrivals(flows, sharing="fifo") == pytest.approx([1.0, 2.0])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 300)), min_size=1, max_size=12))
def test_both_ways_carry_the_same_work(flows: list[tuple[float, float]]) -> None:
    """Both are busy whenever there is something to send, so they fall silent at the same moments."""
    fair, fifo = arrivals(flows), arrivals(flows, sharing="fifo")
    assert max(fair) == pytest.approx(max(fifo), rel=1e-6, abs=1e-6)
    alone = np.array([start + size / 100 for start, size in flows])
    assert np.all(np.array(fair) >= alone - 1e-6) and np.all(np.array(fifo) >= alone - 1e-6)
    # equal rights: of two that start together the smaller is through first
    order = sorted(range(len(flows)), key=lambda i: flows[i][1])
    together = arrivals([(0.0, size) for _, size in flows])
    assert all(together[a] <= together[b] + 1e-6 for a, b in itertools.pairwise(order))


@pytest.mark.parametrize(("sharing", "arrives"), [("fair", 1.25), ("fifo", 1.5)])
def test_a_sender_that_dies_takes_its_bytes_off_the_link(sharing: str, arrives: float) -> None:
    """100 bytes each over 100 B/s; the first sender dies after half a second, with 75 (fair) or 50 left to send."""
    env = simpy.Environment()
    link = Link(env, 100.0, 0.0, sharing)
    done: list[float] = []

    def send() -> Any:
        try:
            yield from link.send(100.0)
        except simpy.Interrupt:
            return
        done.append(env.now)

    def die(sender: simpy.Process) -> Any:
        yield env.timeout(0.5)
        sender.interrupt()

    first = env.process(send())
    env.process(send())
    env.process(die(first))
    env.run()
    assert done == [pytest.approx(arrives)]
