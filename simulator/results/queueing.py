"""The queue as the requests' own times say it: a request waits from its arrival until it is first scheduled.

That is the wait whose mean is the queue time, so both sides of Little's law (1961) speak of the same thing: over a run
in which all requests finish, mean queue length × duration = requests × mean queue time. A preempted request that
waits for its next turn is not counted; the series' ``num_waiting`` has it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.results.records import Records

__all__ = ["left_queue", "mean_waiting", "most_waiting"]

_Floats = npt.NDArray[np.float64]


def left_queue(records: Records) -> _Floats:
    """When each request was first scheduled, or left the system without having been, s; NaN: it still waits."""
    return np.where(np.isnan(records.first_scheduled_time), records.finish_time, records.first_scheduled_time)


def mean_waiting(records: Records, start: float, end: float) -> float:
    """Average over the time from *start* to *end* (s) of the number of waiting requests."""
    since, until = _waits(records, start, end)
    return float((until - since).sum() / (end - start)) if end > start else 0.0


def most_waiting(records: Records, start: float, end: float) -> int:
    """The largest number that waits at once between *start* and *end*, s."""
    since, until = _waits(records, start, end)
    since, until = np.sort(since[until > since]), np.sort(until[until > since])
    left = np.searchsorted(until, since, side="right")
    return int((np.arange(1, len(since) + 1) - left).max(initial=0))


def _waits(records: Records, start: float, end: float) -> tuple[_Floats, _Floats]:
    """(from when, until when) each request that arrived waits within the window."""
    arrived = ~np.isnan(records.arrival_time)
    left = left_queue(records)[arrived]
    since = np.clip(records.arrival_time[arrived], start, end)
    return since, np.maximum(np.clip(np.where(np.isnan(left), end, left), start, end), since)
