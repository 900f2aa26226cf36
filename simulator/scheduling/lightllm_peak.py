"""LightLLM's admission test: would memory suffice if everybody ran to the end?

Each request occupies *a* tokens and will run for *b* more iterations, one token each. Sorted by *b*, longest
first, the first *k* requests are alive together when the k-th ends, holding ``b_k · k + a_1 + … + a_k``
tokens; the largest of these is the peak (server/router/req_queue/chunked_prefill/impl.py, LightLLM fc72ffab).

While everybody decodes, each *a* grows by one and each *b* shrinks by one per iteration: on the decode
counter both are constants, and so is the peak. Only a candidate that waits changes its place.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PeakEstimate", "peak_tokens"]

Ints = NDArray[np.int64]
HORIZON = 2048


def peak_tokens(held: Ints, left: Ints) -> int:
    """Most tokens held at any time by requests that hold *held* now and run *left* more iterations."""
    if not len(left):
        return 0
    order = np.argsort(-left, kind="stable")
    return int((left[order] * np.arange(1, len(left) + 1) + np.cumsum(held[order])).max())


class PeakEstimate:
    """The decoding sequences, by the iteration *end* at which they may end and the tokens they *start* from.

    At iteration *i* of the decode counter such a sequence holds ``start + i`` tokens and runs ``end - i``
    more iterations. Both columns are kept in the order of the ends, the latest first.
    """

    def __init__(self) -> None:
        self._ends = array("q")  # negative, so that they ascend
        self._starts = array("q")

    def join(self, start: int, end: int) -> None:
        """A sequence decodes from now on."""
        at = bisect_left(self._ends, -end)
        self._ends.insert(at, -end)
        self._starts.insert(at, start)

    def leave(self, start: int, end: int) -> None:
        """It decodes no more."""
        at = self._starts.index(start, bisect_left(self._ends, -end))
        del self._ends[at], self._starts[at]

    def _columns(self) -> tuple[Ints, Ints]:
        """Ends and starts; copies, because the columns cannot grow while they are looked at."""
        ends = np.array(self._ends, dtype=np.int64)
        return np.negative(ends, out=ends), np.array(self._starts, dtype=np.int64)

    def with_others(self, iteration: int, others: Sequence[tuple[int, int]]) -> int:
        """The peak of the decoding sequences and of *others*, pairs of (held, left)."""
        ends, starts = self._columns()
        starts += iteration
        ends -= iteration
        if others:
            more = np.array(others, dtype=np.int64)
            starts, ends = np.concatenate((starts, more[:, 0])), np.concatenate((ends, more[:, 1]))
        return peak_tokens(starts, ends)

    def iterations_until(self, iteration: int, held: int, left: int, capacity: int, limit: int) -> int:
        """How many iterations, at most *limit*, until a candidate's peak is below *capacity*."""
        ends, starts = self._columns()
        at = iteration + np.arange(min(limit, HORIZON), dtype=np.int64)
        ahead = np.searchsorted(-ends, -(at + left), side="right")  # sequences that end no sooner than it
        sums = np.concatenate(([0], np.cumsum(starts)))
        alone = ends * np.arange(1, len(ends) + 1) + sums[1:]
        first = np.concatenate(([0], np.maximum.accumulate(alone)))
        later = np.concatenate((np.maximum.accumulate((alone + ends)[::-1])[::-1], [0]))
        peaks = np.maximum(first[ahead], (ahead + 1) * left + sums[ahead] + ahead * at + held)
        peaks = np.where(ahead < len(ends), np.maximum(peaks, later[ahead] + held - at), peaks)
        fits = np.flatnonzero(peaks < capacity)
        return int(fits[0]) if len(fits) else len(at)
