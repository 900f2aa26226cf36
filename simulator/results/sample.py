"""The requests that a report measures, and what every metric is computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.results.itl import InterTokenLatency
from simulator.results.records import FINISHED, Records
from simulator.results.series import StepSeries
from simulator.scheduling.speculative import DraftCounts

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Records, gaps and series of a run with the window over which it is measured.

    Latencies are arrays over the *measured* requests: finished, and arrived at or after the end of the
    *warmup* (s after the first arrival). Counts by status and everything that depends on the series are over
    the whole run.
    """

    records: Records
    itl: InterTokenLatency
    series: Sequence[StepSeries]
    goodput: Mapping[str, float]
    """Objectives in ms by name."""
    warmup: float = 0.0
    end_time: float | None = None
    """Where the run was cut off, s; None: it ran to its last finish."""
    drafts: DraftCounts | None = None
    """What became of the drafts, with speculation."""

    @cached_property
    def start(self) -> float:
        """First arrival plus warm-up, s; NaN when nothing arrived."""
        arrival = self.records.arrival_time
        return float(np.nanmin(arrival)) + self.warmup if not np.isnan(arrival).all() else math.nan

    @cached_property
    def measured(self) -> _Ints:
        """Indices of the measured requests."""
        late = self.records.arrival_time >= self.start
        return np.flatnonzero((self.records.status == FINISHED) & late).astype(np.int64)

    @cached_property
    def scheduled(self) -> npt.NDArray[np.bool_]:
        """Which requests were ever scheduled, shape [requests]."""
        return ~np.isnan(self.records.first_scheduled_time)

    @cached_property
    def completed(self) -> int:
        """Number of measured requests."""
        return len(self.measured)

    @cached_property
    def duration(self) -> float:
        """Seconds from `start` to the end of the run; 0 when nothing arrived or left."""
        finish = self.records.finish_time
        last = float(np.nanmax(finish)) if not np.isnan(finish).all() else math.nan
        end = last if self.end_time is None else self.end_time
        return max(end - self.start, 0.0) if not math.isnan(end - self.start) else 0.0

    def per_second(self, amount: float) -> float | None:
        """*amount* over the duration; None for a run without duration."""
        return amount / self.duration if self.duration > 0 else None

    @cached_property
    def arrival_time(self) -> _Floats:
        return self.records.arrival_time[self.measured]

    @cached_property
    def finish_time(self) -> _Floats:
        return self.records.finish_time[self.measured]

    @cached_property
    def input_length(self) -> _Ints:
        return self.records.input_length[self.measured]

    @cached_property
    def output_length(self) -> _Ints:
        return self.records.output_length[self.measured]

    @cached_property
    def ttft(self) -> _Floats:
        """Seconds; NaN for a request without output."""
        return self.records.first_token_time[self.measured] - self.arrival_time

    @cached_property
    def e2el(self) -> _Floats:
        """Seconds."""
        return self.finish_time - self.arrival_time

    @cached_property
    def tpot(self) -> _Floats:
        """Seconds; NaN for a request with fewer than two tokens."""
        gaps = np.where(self.output_length > 1, self.output_length - 1, 1)
        return np.where(self.output_length > 1, (self.e2el - self.ttft) / gaps, np.nan)

    @cached_property
    def queue_time(self) -> _Floats:
        """Seconds; NaN for a request that finished without being scheduled."""
        return self.records.first_scheduled_time[self.measured] - self.arrival_time

    def total(self, amount: str) -> float:
        """Total of an amount of the series over all replicas."""
        return sum(s.sum(amount) for s in self.series)

    def tokens_per_second(self) -> _Floats:
        """Output tokens of all replicas in each one-second window, shape [seconds]."""
        rates = [s.tokens_per_second() for s in self.series]
        total = np.zeros(max((len(rate) for rate in rates), default=0))
        for rate in rates:
            total[: len(rate)] += rate
        return total
