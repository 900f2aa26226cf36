"""The schedule of a closed loop, once: which batches ran, and what share of them each latency is made of.

When requests enter only as others leave, no decision depends on how long a step takes. So the batches of such a run
are found once, on a clock that counts iterations, and any step-time model is then a weighted sum over them:

    mean TTFT = Σ_steps w_ttft · duration,  mean TPOT = Σ_steps w_tpot · duration

with w the share of requests that wait for their first token (decode, each counted 1/(output - 1)) during the step.
That is exact, and thousands of times quicker than simulating again; the fit uses it, and a test holds it against the
simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from calibrate.serving.case import Case
from simulator.simulation import simulate
from simulator.steptime import StepTime

__all__ = ["Schedule", "record_schedule"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """Runs of equal batches, in order.

    ``decodes``, ``context`` (of the first iteration), ``count`` iterations, ``prefills`` of each run; weights per
    iteration, float64[runs].
    """

    decodes: NDArray[np.int64]
    context: NDArray[np.int64]
    count: NDArray[np.int64]
    prefills: list[tuple[tuple[int, int], ...]]
    w_ttft: Array
    w_tpot: Array


class IterationClock:
    """Stands where a `StepTime` does; every step lasts one, and is written down."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int, int, tuple[tuple[int, int], ...]]] = []

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        """One iteration."""
        self.log.append((num_decodes, decode_context, 1, tuple(prefills)))
        return 1.0

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        """*n* iterations, the first of which `seconds` has just noted."""
        self.log[-1] = (num_decodes, decode_context, n, ())
        return [1.0] * n


def record_schedule(case: Case) -> Schedule:
    """Run *case*, a closed loop, on a clock of iterations."""
    clock = IterationClock()
    resolved = replace(case.resolve(), steptime=cast(StepTime, clock))
    records = simulate(case.trace, resolved).records
    count = np.array([entry[2] for entry in clock.log])
    starts = np.concatenate([[0], np.cumsum(count)])
    total = int(starts[-1])
    first, last, arrival = records.first_token_time, records.finish_time, records.arrival_time
    counted = np.isfinite(last)
    several = counted & (records.output_length > 1)
    w_ttft = _active(arrival[counted], first[counted], np.full(counted.sum(), 1.0 / counted.sum()), total)
    share = 1.0 / (np.maximum(records.output_length - 1, 1) * several.sum())
    w_tpot = _active(first[several], last[several], share[several], total)
    return Schedule(
        decodes=np.array([entry[0] for entry in clock.log]),
        context=np.array([entry[1] for entry in clock.log]),
        count=count,
        prefills=[entry[3] for entry in clock.log],
        w_ttft=w_ttft[starts[:-1]],
        w_tpot=w_tpot[starts[:-1]],
    )


def _active(begin: Array, end: Array, share: Array, total: int) -> Array:
    """Sum of the shares of the intervals [begin, end) that hold each iteration."""
    change = np.zeros(total + 1)
    np.add.at(change, np.rint(begin).astype(np.int64), share)
    np.add.at(change, np.rint(end).astype(np.int64), -share)
    return np.cumsum(change)[:-1]
