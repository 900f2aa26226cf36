"""Inter-token latency: exact percentiles over all gaps between tokens, without storing them.

vLLM's benchmark pools every gap of every request: a run of a million requests has hundreds of millions. But a
gap is the duration of an iteration, and the whole batch sees the same one, so the gaps are few distinct
values with large counts. Values are kept as whole nanoseconds: exact to 1 ns, memory proportional to the
number of distinct values. Beyond `MAX_DISTINCT` of them (16 bytes each) the values move to logarithmic bins
of relative width 2⁻¹⁵ (3e-5: better than four significant digits). Mean, standard deviation and maximum are
pooled as they come and exact either way.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from simulator.compiled.attributes import attributes_of, mypyc_attr, set_attributes

BUFFER = 1 << 16  # gaps collected between two compactions
MAX_DISTINCT = 1 << 20  # distinct nanosecond values kept before bins take over
COUNT_BITS = 20  # room for a count beside a value in one 64-bit integer
MANTISSA_BITS = 15  # bins per octave: 2**15
NS_PER_S = 1e9

_Ints: TypeAlias = npt.NDArray[np.int64]
_Floats: TypeAlias = npt.NDArray[np.float64]


@mypyc_attr(allow_interpreted_subclasses=True)
class InterTokenLatency:
    """All gaps between successive tokens, pooled over requests.

    >>> itl = InterTokenLatency()
    >>> itl.add(0.010, 3)
    >>> itl.add(0.040, 1)
    >>> itl.total, round(itl.mean, 6), itl.median, itl.max
    (4, 0.0175, 0.01, 0.04)
    """

    def __init__(self, max_distinct: int = MAX_DISTINCT) -> None:
        self.max_distinct = max_distinct
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        return attributes_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)

    def clear(self) -> None:
        """Forget every gap (at the end of a warm-up)."""
        self._empty_buffers()
        self._values: _Ints = np.empty(0, np.int64)
        self._counts: _Ints = np.empty(0, np.int64)
        self._fresh: list[tuple[_Ints, _Ints]] = []
        self._fresh_size = 0
        self._ends: _Ints | None = None  # gaps up to each of the values; None when they have changed
        self._binned = False
        self._total, self._mean = 0, 0.0
        self._squares = self._max = 0.0  # sum of squared distances from the mean, s²; largest gap, s

    def add(self, gap_s: float, count: int) -> None:
        """*count* sequences got a token *gap_s* seconds after their previous one."""
        gaps = self._gaps
        gaps.append(gap_s)
        self._gap_counts.append(count)
        if len(gaps) >= BUFFER:
            self._compact()

    def add_each(self, gaps: list[float]) -> None:
        """One sequence each got its token after these *gaps* (s)."""
        self._gaps.extend(gaps)
        self._gap_counts.extend([1] * len(gaps))
        if len(self._gaps) >= BUFFER:
            self._compact()

    def add_many(self, gaps: _Floats | list[float], count: int) -> None:
        """The same for each of *gaps* (s, shape [n]): *count* sequences through n iterations."""
        if isinstance(gaps, list):  # a short run: an array of its own would cost more than what is in it
            self._gaps.extend(gaps)
            self._gap_counts.extend([count] * len(gaps))
            if len(self._gaps) >= BUFFER:
                self._compact()
            return
        self._runs.append(gaps.copy())
        self._run_counts.append(count)
        self._run_size += len(gaps)
        if self._run_size >= BUFFER:
            self._compact()

    def merge(self, other: InterTokenLatency) -> None:
        """Pool the gaps of *other* (another replica) into this one."""
        values, counts = other._all()
        self._compact()
        self._absorb(values, counts)
        self._max = max(self._max, other._max)
        self._pool(other._total, other._mean, other._squares)

    @property
    def total(self) -> int:
        """Number of gaps."""
        self._compact()
        return self._total

    @property
    def mean(self) -> float:
        """Mean gap, s; NaN when there is none."""
        return self._mean if self.total else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation of the gaps, s (as numpy and vLLM do); NaN when empty."""
        return math.sqrt(self._squares / self._total) if self.total else math.nan

    @property
    def median(self) -> float:
        """Median gap, s."""
        return self.percentile(50)

    @property
    def max(self) -> float:
        """Largest gap, s; NaN when there is none."""
        return self._max if self.total else math.nan

    def percentile(self, p: float) -> float:
        """The *p*-th percentile (0 to 100) in seconds, interpolated linearly between ranks as numpy does; NaN
        when empty.
        """
        values, counts = self._all()
        if not self._total:
            return math.nan
        rank = (self._total - 1) * p / 100
        if self._ends is None:
            self._ends = np.cumsum(counts)
        low, high = values[np.searchsorted(self._ends, [math.floor(rank), math.ceil(rank)], side="right")]
        return float(low + (high - low) * (rank - math.floor(rank))) / NS_PER_S

    def distribution(self) -> tuple[_Floats, _Ints]:
        """Distinct gaps in ascending order (s) and how often each occurred."""
        values, counts = self._all()
        return values / NS_PER_S, counts

    def _all(self) -> tuple[_Ints, _Ints]:
        self._compact()
        self._merge_fresh()
        return self._values, self._counts

    def _empty_buffers(self) -> None:
        self._gaps, self._gap_counts = array("d"), array("q")
        self._runs: list[_Floats] = []
        self._run_counts: list[int] = []
        self._run_size = 0

    def _compact(self) -> None:
        """Turn the buffers into distinct values with counts."""
        if not self._gaps and not self._runs:
            return
        gaps = np.concatenate((np.array(self._gaps), *self._runs))
        run_counts: _Ints = np.repeat(np.array(self._run_counts, np.int64), [len(run) for run in self._runs])
        counts = np.concatenate((np.array(self._gap_counts), run_counts))
        self._empty_buffers()
        if total := int(counts.sum()):
            # Not gaps @ counts: BLAS would start a thread per core, which waits by spinning, and round by their number.
            mean = float(np.sum(gaps * counts)) / total
            self._pool(total, mean, float(np.sum((gaps - mean) ** 2 * counts)))
        self._max = max(self._max, float(gaps[counts > 0].max(initial=0.0)))
        self._absorb(np.rint(gaps * NS_PER_S).astype(np.int64), counts)

    def _pool(self, total: int, mean: float, squares: float) -> None:
        """Add the moments of another set of gaps (Chan, Golub and LeVeque, 1979: no cancellation)."""
        if not total:
            return
        pooled, shift = self._total + total, mean - self._mean
        self._squares += squares + shift * shift * self._total * total / pooled
        self._mean += shift * total / pooled
        self._total = pooled

    def _absorb(self, values: _Ints, counts: _Ints) -> None:
        values, counts = _distinct(self._round(values), counts)
        self._fresh.append((values, counts))
        self._fresh_size += len(values)
        # Merging only when the fresh values rival the old ones keeps the cost of a gap logarithmic.
        if self._fresh_size > max(8 * BUFFER, len(self._values)):
            self._merge_fresh()

    def _merge_fresh(self) -> None:
        if not self._fresh:
            return
        self._ends = None
        parts = [(self._values, self._counts), *self._fresh]
        self._fresh, self._fresh_size = [], 0
        values, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
        self._values, self._counts = _distinct(self._round(values), counts)
        if len(self._values) > self.max_distinct and not self._binned:
            self._binned = True
            self._values, self._counts = _distinct(self._round(self._values), self._counts)

    def _round(self, values: _Ints) -> _Ints:
        """Centre of the bin of each value, once bins have taken over; the value itself before."""
        if not self._binned:
            return values
        _, exponent = np.frexp(values.astype(np.float64))
        shift = np.maximum(exponent.astype(np.int64) - MANTISSA_BITS - 1, 0)
        half = (1 << shift) >> 1
        return (((values >> shift) << shift) + half).astype(np.int64)


def _distinct(values: _Ints, counts: _Ints) -> tuple[_Ints, _Ints]:
    """Ascending distinct *values* with the sums of their positive *counts*."""
    if not (counts > 0).all():
        values, counts = values[counts > 0], counts[counts > 0]
    if not len(values):
        return values, counts
    values, counts = _sorted(values, counts)
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return values[starts], np.add.reduceat(counts, starts)


def _sorted(values: _Ints, counts: _Ints) -> tuple[_Ints, _Ints]:
    """Both arrays in the order of *values*."""
    if values.max() < 1 << (62 - COUNT_BITS) and counts.max() < 1 << COUNT_BITS:
        # Sorting one array of packed pairs takes a third of the time of sorting indices.
        packed = np.sort((values << COUNT_BITS) | counts)
        return packed >> COUNT_BITS, packed & ((1 << COUNT_BITS) - 1)
    order = np.argsort(values, kind="stable")
    return values[order], counts[order]
