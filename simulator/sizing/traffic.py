"""Traffic for sizing: one replica's part of a trace, the same trace at another rate, and fresh traffic like it.

Round-robin gives replica k of n the requests k, k + n, k + 2n, …, so m replicas on the requests i with i mod n < m see
exactly what m of the n would. Fresh traffic is a moving-block bootstrap (Künsch 1989): blocks of neighbouring
requests are drawn with their gaps and lengths, which keeps bursts, drift within a block, and the dependence
between both.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.errors import ConfigurationError
from simulator.workload import Trace

__all__ = ["part_of", "resampled"]

BLOCKS = 10
"""Blocks that a trace is cut into, about."""


def check_open(trace: Trace) -> None:
    """Sizing asks for a rate, which only a trace with arrival times has."""
    if np.isnan(trace.arrival_time).any() or trace.max_concurrency is not None:
        raise ConfigurationError(
            "the trace is a closed loop: its rate follows from the system. Give every request an arrival time"
        )
    if len(trace) < 100:
        raise ConfigurationError(
            f"{len(trace)} requests say nothing about a percentile: at least 100 are needed"
        )


def part_of(trace: Trace, replicas: int, requests: int) -> tuple[Trace, int]:
    """(what the first m of *replicas* round-robin replicas get, m): the fewest that see at least *requests*."""
    share = len(trace) / replicas
    some = min(replicas, max(1, math.ceil(requests / share)))
    if some == replicas:
        return trace, replicas
    return trace.select(np.arange(len(trace)) % replicas < some), some


def resampled(trace: Trace, seed: int, requests: int | None = None) -> Trace:
    """*requests* (default: as many) like those of *trace*, at its mean rate.

    A trace whose prompts share content is only started elsewhere (and wrapped around): copies of a prompt would be
    cache hits that the real traffic has not. So is one whose turns wait for each other, session by session.
    """
    rng, n = np.random.default_rng(seed), len(trace)
    if np.isnan(trace.arrival_time).any():
        return _started_elsewhere(trace, rng)
    if len(trace.content_ids):
        chosen = (np.arange(n) + rng.integers(1, n)) % n
    else:
        wanted, size = requests or n, max(n // BLOCKS, 1)
        starts = rng.integers(0, n, -(-wanted // size))
        chosen = ((starts[:, None] + np.arange(size)[None, :]) % n).ravel()[:wanted]
    gaps = np.diff(trace.arrival_time, prepend=0.0)
    gaps[0] = trace.duration / max(n - 1, 1)  # between the last request and the first one again
    times = np.cumsum(gaps[chosen])
    fresh = trace.replace(session=np.full(n, -1), turn=np.zeros(n, np.int64), request_id=None).select(chosen)
    return fresh.replace(arrival_time=times - times[0]).with_request_rate(trace.request_rate)


def _started_elsewhere(trace: Trace, rng: np.random.Generator) -> Trace:
    """*trace* from another session's start on, what was before it behind the rest; later turns go with the first."""
    starts = np.sort(trace.arrival_time[~np.isnan(trace.arrival_time)])
    if len(starts) < 2 or starts[-1] == starts[0]:
        return trace
    period = (starts[-1] - starts[0]) * len(starts) / (len(starts) - 1)
    shifted = (trace.arrival_time - rng.choice(starts[1:])) % period
    return trace.replace(arrival_time=shifted, request_id=None).in_arrival_order()
