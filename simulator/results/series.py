"""The run over time: what each replica did, decision by decision, in bounded memory.

A scheduling decision fixes a batch for one or more identical iterations. One row per decision says when it
was taken, how long its iterations took together and what the system looked like: a step function of time
whose value holds until the next row. A million requests take millions of decisions, so rows are folded:
`stride` neighbours become one point that keeps their integrals over time, sums and maxima. Time averages and
maxima are therefore exact over the whole run; only the resolution of the curve is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from simulator.compiled.attributes import attributes_of, mypyc_attr, set_attributes
from simulator.results.points import AMOUNTS, COLUMNS, LEVELS, Points, fold, join, no_points, pairs
from simulator.results.token_rate import TokenRate

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 4096  # rows between two folds
HEAD = CHUNK  # first rows kept as they are, for the timeline
_ROW = struct.Struct(f"{len(COLUMNS)}d")

_Floats: TypeAlias = npt.NDArray[np.float64]


@mypyc_attr(allow_interpreted_subclasses=True)
class StepSeries:
    """One replica over time.

    *num_gpu_blocks* and *block_size* give the size of the KV cache; *start_time* (s) is where the one-second
    windows of the peak token rate begin; *max_points* bounds the number of points kept.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        block_size: int,
        replica: int = 0,
        start_time: float = 0.0,
        max_points: int = 20_000,
    ) -> None:
        self.num_gpu_blocks, self.block_size, self.replica = num_gpu_blocks, block_size, replica
        self.max_points = max_points
        self.head = np.empty((0, len(COLUMNS)))
        """The first rows as appended, shape [≤ HEAD, len(COLUMNS)]."""
        self.token_rate = TokenRate(start_time)
        self._stride = 1
        self._points: list[Points] = []
        self._num_points = 0
        self._whole: tuple[int, Points] = (-1, no_points())  # all points, as of that many rows
        self._num_rows = 0
        self._buffer = bytearray(_ROW.size * CHUNK)
        self._offset = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again: all points in one piece."""
        return {**attributes_of(self), "_whole": (-1, no_points())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)

    def append(
        self,
        time: float,
        duration_s: float,
        iterations: float,
        num_running: float,
        num_waiting: float,
        num_decodes: float,
        prefill_tokens: float,
        output_tokens: float,
        kv_blocks_used: float,
        kv_blocks_cached: float,
        preemptions: float = 0,
        waste_reserved: float = 0.0,
        waste_internal: float = 0.0,
        waste_external: float = 0.0,
        waste_shared: float = 0.0,
    ) -> None:
        """A decision taken at *time* (s), in non-decreasing order, whose *iterations* last *duration_s*
        together.

        Tokens and *preemptions* are those of this decision (all its iterations). *num_running* is the batch,
        *num_decodes* the decoding part of it. Levels hold until the next row: a replica that goes idle
        appends a row with 0 iterations that says so.
        """
        # About 0.3 µs: packing into bytes beats appending to fifteen arrays by a factor of three.
        _ROW.pack_into(
            self._buffer,
            self._offset,
            time,
            duration_s,
            iterations,
            num_running,
            num_waiting,
            num_decodes,
            prefill_tokens,
            output_tokens,
            kv_blocks_used,
            kv_blocks_cached,
            preemptions,
            waste_reserved,
            waste_internal,
            waste_external,
            waste_shared,
        )
        self._offset += _ROW.size
        if self._offset == len(self._buffer):
            self._fold_full()

    def points(self) -> dict[str, _Floats]:
        """The curve, one entry per point: ``time`` and ``span`` (s), mean and ``_max`` of each level, each
        amount.
        """
        points = self._settled()
        span = np.where(points["span"] > 0, points["span"], 1.0)
        curve = {"time": points["time"], "span": points["span"]}
        for i, name in enumerate(LEVELS):
            # A point without duration has no integral; its maximum is its only value.
            mean = np.where(points["span"] > 0, points["integral"][:, i] / span, points["max"][:, i])
            curve |= {name: mean, f"{name}_max": points["max"][:, i]}
        return curve | {name: points["amount"][:, i] for i, name in enumerate(AMOUNTS)}

    def to_frame(self) -> pd.DataFrame:
        """`points` as a pandas frame, with the replica's number."""
        import pandas as pd

        return pd.DataFrame({"replica": self.replica, **self.points()})

    def span(self) -> float:
        """Seconds from the first row to the end of the last."""
        return float(self._settled()["span"].sum())

    def end_time(self) -> float:
        """When the last row ends, s; NaN without rows."""
        points = self._settled()
        return float(points["time"][-1] + points["span"][-1]) if len(points["time"]) else float("nan")

    def mean(self, level: str) -> float:
        """Average over time of one of `LEVELS`; 0 for a run without duration."""
        points, span = self._settled(), self.span()
        return float(points["integral"][:, LEVELS.index(level)].sum() / span) if span else 0.0

    def maximum(self, level: str) -> float:
        """Largest value of one of `LEVELS`; 0 without rows."""
        return float(self._settled()["max"][:, LEVELS.index(level)].max(initial=0.0))

    def sum(self, amount: str) -> float:
        """Total of one of `AMOUNTS`."""
        return float(self._settled()["amount"][:, AMOUNTS.index(amount)].sum())

    def tokens_per_second(self) -> _Floats:
        """Output tokens in each one-second window since *start_time*."""
        rate = self.token_rate.copy()
        rate.add(self._rows())
        return rate.windows()

    def _rows(self) -> _Floats:
        used = memoryview(self._buffer)[: self._offset]
        return np.frombuffer(used, np.float64).reshape(-1, len(COLUMNS))

    def _settled(self) -> Points:
        """Points including the rows still in the buffer; the last row ends with its iterations."""
        seen = self._num_rows + self._offset
        if self._whole[0] != seen:
            rows, points = self._rows().copy(), self._points
            if len(rows):
                last = rows[-1, 0] + rows[-1, 1]
                points = [*points, fold(rows, np.append(rows[1:, 0], last), self._stride)]
            self._whole = seen, join(points)
        return self._whole[1]

    def _fold_full(self) -> None:
        """Fold all rows but the last, whose end is not known yet."""
        rows = self._rows().copy()
        if not len(self.head):
            self.head = rows[:HEAD]
        kept = (len(rows) - 1) // self._stride * self._stride
        self.token_rate.add(rows[:kept])
        self._points.append(fold(rows[:kept], rows[1 : kept + 1, 0], self._stride))
        self._num_points += len(self._points[-1]["time"])
        self._num_rows += self._offset
        while self._num_points >= 2 * self.max_points:
            self._points, self._stride = [pairs(join(self._points))], 2 * self._stride
            self._num_points = len(self._points[0]["time"])
        rest = rows[kept:].tobytes()
        size = _ROW.size * max(CHUNK, 4 * self._stride)
        self._buffer, self._offset = bytearray(rest) + bytearray(size - len(rest)), len(rest)


def busy_points(series: StepSeries) -> dict[str, _Floats]:
    """The points of *series* with iterations, their levels averaged over the time in iterations alone.

    A point of many rows may be idle for most of its span, with levels of nought there.
    """
    points = series.points()
    busy = points["iterations"] > 0
    found = {name: values[busy] for name, values in points.items()}
    stretch = np.maximum(found["span"] / np.maximum(found["duration_s"], 1e-12), 1.0)
    for level in LEVELS:
        found[level] = np.minimum(found[level] * stretch, found[f"{level}_max"])
    return found


def head_rows(series: StepSeries) -> _Floats:
    """The first rows of *series* as appended, shape [≤ HEAD, len(COLUMNS)]."""
    return series.head if len(series.head) else series._rows().copy()


def pooled_mean(series: Sequence[StepSeries], level: str) -> float:
    """Sum over replicas of the time averages of *level*, each over the longest span."""
    longest = max((s.span() for s in series), default=0.0)
    return sum(s.mean(level) * s.span() for s in series) / longest if longest else 0.0
