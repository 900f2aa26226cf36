"""Is more traffic offered than the system can serve?

In a stable system the queue fluctuates about a level. Above capacity it grows for as long as requests keep
coming, by (offered − served) requests per second, and every latency then measures how long the trace is, not
how good the system is. So the number of requests that have arrived but were never scheduled is watched up to
the last arrival. A queue that is a random walk at exactly full load reaches about √(2n) after n arrivals
(variance n of the arrivals plus n of the services); twice that, and growth in each successive third, is
called an overload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.results.queueing import left_queue
from simulator.results.records import Records

MIN_ARRIVALS = 50  # fewer say nothing about a rate
NOISE_FACTOR = 2.0  # in units of √(2n)

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overload:
    """The queue up to the last arrival. Rates are requests per second over the second half of the arrivals'
    span.
    """

    overloaded: bool
    offered_rate: float
    served_rate: float
    waiting_at_last_arrival: int
    last_arrival: float
    """Seconds after the first arrival."""
    wait_of_last: float
    """Mean queue time of the last tenth of the scheduled requests, s."""

    def text(self) -> str:
        """One line for the terminal; empty when there is no overload."""
        if not self.overloaded:
            return ""
        return (
            f"Overload: {self.offered_rate:.2f} requests/s arrive, {self.served_rate:.2f} are served; "
            f"the queue grew to {self.waiting_at_last_arrival:,} requests by the last arrival "
            f"({self.last_arrival:,.0f} s) and the last ones waited {self.wait_of_last:,.1f} s. "
            "Latencies grow with the length of the trace."
        )


def detect_overload(records: Records) -> Overload | None:
    """Whether the queue grew over the run; None for under `MIN_ARRIVALS` arrivals or all at once."""
    arrival = np.sort(records.arrival_time[~np.isnan(records.arrival_time)])
    if len(arrival) < MIN_ARRIVALS or arrival[-1] <= arrival[0]:
        return None
    start, span = arrival[0], arrival[-1] - arrival[0]
    left = left_queue(records)
    left = np.sort(left[~np.isnan(left)])
    middle = start + span / 2
    offered = len(arrival) - np.searchsorted(arrival, middle)
    served = np.searchsorted(left, arrival[-1], side="right") - np.searchsorted(left, middle)
    waiting = _queue(arrival, left, start + span * np.linspace(0, 1, 61))
    thirds = waiting[1:].reshape(3, -1).mean(axis=1)
    noise = NOISE_FACTOR * np.sqrt(2 * len(arrival))
    return Overload(
        overloaded=bool(waiting[-1] > noise and np.all(np.diff(thirds) > 0)),
        offered_rate=float(2 * offered / span),
        served_rate=float(2 * served / span),
        waiting_at_last_arrival=int(waiting[-1]),
        last_arrival=float(span),
        wait_of_last=_wait_of_last(records),
    )


def _queue(arrival: _Floats, left: _Floats, times: _Floats) -> npt.NDArray[np.int64]:
    arrived = np.searchsorted(arrival, times, side="right")
    return (arrived - np.searchsorted(left, times, side="right")).astype(np.int64)


def _wait_of_last(records: Records) -> float:
    scheduled = np.flatnonzero(~np.isnan(records.first_scheduled_time))
    if not len(scheduled):
        return float("nan")
    last = scheduled[-max(len(scheduled) // 10, 1) :]
    return float(np.mean(records.first_scheduled_time[last] - records.arrival_time[last]))
