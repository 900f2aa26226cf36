"""Attention of the prompt chunks of a batch: one launch, whose start is paid once for all chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulator.models import ModelSpec
from simulator.steptime.attention import StepAttention
from simulator.steptime.tables import SurfaceTable

__all__ = ["PrefillTimes"]

FIRST_CHUNK, FIRST_CONTEXT = 8192, 131_072
"""Reach of the first table, in tokens; it grows when asked for more."""


class PrefillTimes:
    """Seconds of prefill attention over all layers; *dp* ranks share the chunks evenly, none is cut."""

    def __init__(self, model: ModelSpec, attention: StepAttention, dp: int) -> None:
        self._law = attention.prefill
        self._ideal = replace(attention, laws=attention.ideal).prefill
        self._context = min(model.max_position_embeddings, FIRST_CONTEXT)
        self._dp = dp
        self._start = 0.0
        self._table = SurfaceTable.empty()

    def seconds(self, prefills: Sequence[tuple[int, int]]) -> float:
        """Seconds for (chunk, context) pairs in one launch."""
        table, total, most = self._table, 0.0, 0.0
        for chunk, context in prefills:
            if chunk > table.max_chunk or context > table.max_context:
                table = self._grow(chunk, context)
            time = table.read(chunk, context)
            total += time
            if time > most:
                most = time
        return self._start + max(most, total / self._dp)

    def _grow(self, chunk: int, context: int) -> SurfaceTable:
        law, ideal, old = self._law, self._ideal, self._table
        one, none = np.ones(1), np.zeros(1)
        self._start = start = float(max(law(one, none)[0] - 2 * ideal(one, none)[0], 0.0))
        longest = max(chunk, old.max_chunk, FIRST_CHUNK)
        furthest = max(context, old.max_context, self._context)
        # what a chunk adds to a launch is never less than its FLOPs and bytes take
        self._table = SurfaceTable(lambda c, k: np.maximum(law(c, k) - start, ideal(c, k)), longest, furthest)
        return self._table
