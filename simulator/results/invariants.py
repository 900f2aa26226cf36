"""Nothing is lost: what must hold of every run before a number of it may be reported.

    injected = finished + running + waiting + swapped + in_transfer + rejected + failed + cancelled + lost

and each of the last four has its reason; a finished request went through its stages in order.
A violation is a defect of the simulator, not of the input, so it is not a `SimError` and keeps its traceback.
"""

from __future__ import annotations

import numpy as np

from simulator.results.records import CANCELLED, FAILED, FINISHED, LOST, NO_REASON, REJECTED, STATUS, Records

RELATIVE_CLOCK_ERROR = 1e-9  # skipped and stepped runs agree on times to this much


class ConservationError(RuntimeError):
    """A request is missing, counted twice, without a reason, or finished before it began."""


def check_conservation(records: Records, injected: int | None = None) -> None:
    """Raise `ConservationError` unless every injected request is in exactly one state.

    *injected* is the driver's own count of arrivals; by default the number of requests with an arrival time.
    """
    arrived = ~np.isnan(records.arrival_time)
    injected = int(arrived.sum()) if injected is None else injected
    counts = records.counts()
    if sum(counts.values()) != injected:
        parts = " + ".join(f"{number} {name}" for name, number in counts.items() if number)
        raise ConservationError(f"injected {injected} requests, but {parts or 0} = {sum(counts.values())}")
    _fail_if(~arrived & (records.status >= 0), "has a status but never arrived", records)
    _fail_if(records.status >= len(STATUS), "has an unknown status", records)
    explained = np.isin(records.status, (REJECTED, FAILED, CANCELLED, LOST))
    _fail_if(explained & (records.reason == NO_REASON), "left without a reason", records)
    check_stages(records)


def check_stages(records: Records) -> None:
    """Raise `ConservationError` unless arrival ≤ first scheduled ≤ first token ≤ finish wherever both
    happened.
    """
    stages = ("arrival_time", "first_scheduled_time", "first_token_time", "finish_time")
    finished = records.status == FINISHED
    _fail_if(finished & np.isnan(records.finish_time), "finished without a finish_time", records)
    silent = np.isnan(records.first_token_time) & (records.output_length > 0)
    _fail_if(finished & silent, "finished with output but without a first_token_time", records)
    reached = records.arrival_time
    for name in stages[1:]:
        time = getattr(records, name)
        slack = RELATIVE_CLOCK_ERROR * np.maximum(1.0, np.abs(reached))
        _fail_if(time < reached - slack, f"has its {name} before an earlier stage", records)
        reached = np.where(np.isnan(time), reached, time)


def _fail_if(wrong: np.ndarray, what: str, records: Records) -> None:
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ConservationError(f"request {records.ids()[first]} {what} ({int(wrong.sum())} such requests)")
