"""Mean, spread and percentiles of a latency, whether its values are at hand or only counted."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Distribution(Protocol):
    """What a report says about a latency, in seconds; NaN where there is no value. `InterTokenLatency` is
    one.
    """

    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def median(self) -> float: ...
    @property
    def max(self) -> float: ...
    def percentile(self, p: float) -> float:
        """The *p*-th percentile (0 to 100), linear between ranks as in `numpy.percentile`."""
        ...


class Values:
    """Distribution of values at hand, shape [n], in seconds; NaN among them are left out."""

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        known = values[~np.isnan(values)]
        self.sorted = np.sort(known)
        self.mean = float(known.mean()) if len(known) else math.nan
        self.std = float(known.std()) if len(known) else math.nan

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentile(50)

    @property
    def max(self) -> float:
        """The largest value."""
        return self.percentile(100)

    def percentile(self, p: float) -> float:
        """The *p*-th percentile (0 to 100)."""
        if not len(self.sorted):
            return math.nan
        rank = (len(self.sorted) - 1) * p / 100
        low, high = self.sorted[math.floor(rank)], self.sorted[math.ceil(rank)]
        return float(low + (high - low) * (rank - math.floor(rank)))
