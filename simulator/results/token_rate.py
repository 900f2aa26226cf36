"""Output tokens per one-second window: the base of vLLM's peak output token throughput.

vLLM's benchmark cuts the run into windows of one second from the start of the first request and counts the
tokens that arrive in each. Here the tokens of a decision's n iterations are taken as evenly spread
over its duration, one n-th at the end of each iteration.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_TIME, _DURATION, _ITERATIONS, _OUTPUT_TOKENS = 0, 1, 2, 7  # columns of a row of `StepSeries`


class TokenRate:
    """Counts per window; rows are added in any order, windows before *start_time* (s) are not kept."""

    def __init__(self, start_time: float = 0.0) -> None:
        self.start_time = start_time
        self._windows = np.zeros(0)

    def copy(self) -> TokenRate:
        """An independent copy."""
        other = TokenRate(self.start_time)
        other._windows = self._windows.copy()
        return other

    def windows(self) -> _Floats:
        """Tokens in each window, shape [seconds]."""
        return self._windows

    def add(self, rows: _Floats) -> None:
        """Count the tokens of *rows*, shape [n, columns of `StepSeries`]."""
        rows = rows[rows[:, _OUTPUT_TOKENS] > 0]
        begin = rows[:, _TIME] - self.start_time
        step = rows[:, _DURATION] / np.maximum(rows[:, _ITERATIONS], 1)
        first, last = np.floor(begin + step), np.floor(begin + rows[:, _DURATION])
        whole = first == last
        self._count(last[whole], rows[whole, _OUTPUT_TOKENS])
        self._spread(rows[~whole], begin[~whole], step[~whole])

    def _spread(self, rows: _Floats, begin: _Floats, step: _Floats) -> None:
        """Rows that cross the border of a window: one entry per iteration."""
        n = rows[:, _ITERATIONS].astype(np.int64)
        k = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + 1
        seconds = np.floor(np.repeat(begin, n) + k * np.repeat(step, n))
        self._count(seconds, np.repeat(rows[:, _OUTPUT_TOKENS] / n, n))

    def _count(self, seconds: _Floats, tokens: _Floats) -> None:
        inside = seconds >= 0
        counts = np.bincount(seconds[inside].astype(np.int64), weights=tokens[inside])
        if len(counts) > len(self._windows):
            grown = np.zeros(max(len(counts), 2 * len(self._windows)))
            grown[: len(self._windows)] = self._windows
            self._windows = grown
        self._windows[: len(counts)] += counts
