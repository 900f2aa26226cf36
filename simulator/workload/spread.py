"""Coarse clocks: requests that share a time stamp because the clock that stamped them ticks slowly.

Mooncake's conversation trace has ten requests at a time, every 3 s, where the source had one after the other:
replayed as it is, its bursts are an artefact of the clock. Spreading draws the requests of a tick uniformly
within it, which makes counts per tick and everything slower than a tick stay as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.workload.trace import Trace

__all__ = ["quantum", "spread_uniform"]

Floats = NDArray[np.float64]


def quantum(arrival_time: Floats) -> float:
    """The clock's tick in s: steps between distinct times where most requests share theirs, else the
    resolution.

    The 1st percentile of the steps stands for their least, as single steps may be shorter by jitter.
    """
    known = arrival_time[~np.isnan(arrival_time)]
    steps = np.diff(np.unique(np.round(known, 7)))
    if len(steps) == 0:
        return 0.0
    if len(known) >= 2 * (len(steps) + 1):
        return round(float(np.percentile(steps, 1)), 7)
    return float(np.gcd.reduce(np.round(steps * 1e7).astype(np.int64))) / 1e7


def spread_uniform(trace: Trace, generator: np.random.Generator) -> Trace:
    """Arrivals moved by a uniform share of the tick, in order; at most to the next time that occurs."""
    tick = quantum(trace.arrival_time)
    known = np.flatnonzero(~np.isnan(trace.arrival_time))
    times, group = np.unique(trace.arrival_time[known], return_inverse=True)
    room = np.minimum(np.diff(times, append=np.inf), tick)
    moved = np.sort(group + generator.random(len(known)))  # sorted within each group: the file's order stays
    arrival = trace.arrival_time.copy()
    arrival[known] = times[group] + (moved - group) * room[group]
    meta = {**trace.meta, "spread": "uniform", "quantum_s": tick}
    return trace.replace(arrival_time=arrival, meta=meta)
