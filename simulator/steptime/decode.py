"""Attention of decoding batches: for every number of sequences a curve over the sum of their contexts."""

from __future__ import annotations

from array import array

import numpy as np

from simulator.models import ModelSpec
from simulator.steptime.attention import StepAttention
from simulator.steptime.tables import KNOTS, curve_knots, octaves

__all__ = ["DecodeTimes"]

BLOCK = 16
"""Numbers of sequences whose curves are evaluated together."""


class DecodeTimes:
    """Seconds of decode attention over all layers, of a batch spread evenly over *dp* ranks."""

    def __init__(self, model: ModelSpec, attention: StepAttention, dp: int) -> None:
        self._law, self._dp = attention.decode, dp
        self._longest = model.max_position_embeddings
        self._curves: dict[int, array[float]] = {}

    def curve(self, num_decodes: int, context: int = 0) -> array[float]:
        """The knots for *num_decodes* sequences, to the model's full context each and to *context* in sum."""
        found = self._curves.get(num_decodes)
        reach = octaves(max(num_decodes * self._longest, context))
        if found is None or len(found) < reach * KNOTS:
            self._evaluate(num_decodes, reach)
        return self._curves[num_decodes]

    def _evaluate(self, num_decodes: int, reach: int) -> None:
        first = (num_decodes - 1) // BLOCK * BLOCK + 1
        counts = range(first, first + BLOCK)
        contexts = curve_knots(max(reach, octaves(counts[-1] * self._longest))) / self._dp
        per_rank = np.maximum(np.array(counts, dtype=float) / self._dp, 1.0)
        times = self._law(per_rank[:, None], np.broadcast_to(contexts, (BLOCK, len(contexts))))
        for count, row in zip(counts, times.tolist(), strict=True):
            self._curves[count] = array("d", row)
