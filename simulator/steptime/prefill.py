"""Attention of the prompt chunks of a batch: one launch, whose start is paid once for all chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulator.compiled.attributes import attributes_of, mypyc_attr, set_attributes
from simulator.models import ModelSpec
from simulator.steptime.attention import StepAttention
from simulator.steptime.tables import ChunkTable

__all__ = ["PrefillTimes"]

Array: TypeAlias = NDArray[np.float64]

FIRST_CONTEXT = 131_072
"""Reach of the first table, in tokens; it grows when asked for more."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefillTimes:
    """Seconds of prefill attention over all layers; *dp* ranks share the chunks evenly, none is cut."""

    def __init__(self, model: ModelSpec, attention: StepAttention, dp: int) -> None:
        self._law = attention.prefill
        self._ideal = replace(attention, laws=attention.ideal).prefill
        self._dp = dp
        one, none = np.ones(1), np.zeros(1)
        self._start = float(max(self._law(one, none)[0] - 2 * self._ideal(one, none)[0], 0.0))
        self._reach(min(model.max_position_embeddings, FIRST_CONTEXT))

    def __getstate__(self) -> dict[str, Any]:
        return attributes_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)

    def seconds(self, prefills: Sequence[tuple[int, int]]) -> float:
        """Seconds for (chunk, context) pairs in one launch."""
        (chunk, context), *others = prefills
        if context > self._alone.max_context:
            self._reach(2 * context)
        first = self._alone.read(chunk, context)
        if not others:
            return first
        total = most = first
        for chunk, context in others:
            if context > self._added.max_context:
                self._reach(2 * context)
            time = self._added.read(chunk, context)
            total += time
            if time > most:
                most = time
        return total if self._dp == 1 else max(most, total / self._dp)

    def _reach(self, context: int) -> None:
        self._alone = ChunkTable(self._law, context)
        self._added = ChunkTable(self._beyond_start, context)

    def _beyond_start(self, chunk: Array, context: Array) -> Array:
        """What a further chunk adds to a launch: never less than its FLOPs and bytes take."""
        return np.asarray(np.maximum(self._law(chunk, context) - self._start, self._ideal(chunk, context)))
