"""All operators of a step but attention, as tables over the number of tokens and of rows with logits."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.steptime.engine_costs import EngineCosts
from simulator.steptime.operators import Operator
from simulator.steptime.protocol import Laws
from simulator.steptime.roofline import RooflineLaws

__all__ = ["OperatorTimes"]

Array = NDArray[np.float64]

DENSE_TOKENS = 16_384
"""Largest batch for which every token count has its own table entry."""


class OperatorTimes:
    """Seconds of *operators* on *laws*, as the kernels of *engine* run them.

    The tokens of a replica's batch are spread over *dp* ranks. *overhead* (s) is what all layers together take beyond
    their operators; where it is negative (launches that overlap) it cannot hide the work itself.
    """

    def __init__(
        self, laws: Laws, operators: Sequence[Operator], engine: EngineCosts, dp: int, overhead: float
    ) -> None:
        self.operators, self.laws, self.ideal = operators, laws, RooflineLaws(laws)
        self._engine, self._dp, self._overhead = engine, dp, overhead
        self._native_fp4 = laws.peak_flops("fp4") > 2 * laws.peak_flops("bf16")
        self._of_tokens: array[float] = array("d")
        self._of_rows: array[float] = array("d")
        self._far: dict[int, float] = {}

    def tokens(self, tokens: int) -> float:
        """Seconds of all operators that depend on the number of tokens, and of the layers' overhead."""
        if tokens < len(self._of_tokens):
            return self._of_tokens[tokens]
        if tokens <= DENSE_TOKENS:
            size = min(max(2 * tokens, 512), DENSE_TOKENS)
            self._of_tokens = self._table(np.arange(1.0, size + 1), self._token_operators())
            return self._of_tokens[tokens]
        if tokens not in self._far:
            self._far[tokens] = self._table(np.array([float(tokens)]), self._token_operators())[1]
        return self._far[tokens]

    def rows(self, rows: int) -> float:
        """Seconds of final norm, LM head and sampling of *rows* rows."""
        if rows >= len(self._of_rows):
            of_rows = (operator for operator in self.operators if operator.axis == "rows")
            self._of_rows = self._table(np.arange(1.0, max(2 * rows, 256) + 1), of_rows, overhead=False)
        return self._of_rows[rows]

    def seconds(self, operator: Operator, counts: Array) -> Array:
        """Seconds of all executions of *operator* in a step with each of *counts* tokens or rows."""
        m = self._local(operator, counts)
        seconds = self._engine.operator_seconds(operator, operator.seconds(self.laws, m), m, self._native_fp4)
        return np.asarray(np.maximum(seconds, operator.seconds(self.ideal, m)))

    def _local(self, operator: Operator, counts: Array) -> Array:
        """What one rank sees of *counts* rows of the replica's batch."""
        return counts if operator.axis == "all_tokens" else np.ceil(counts / self._dp)

    def _token_operators(self) -> Iterable[Operator]:
        return (operator for operator in self.operators if operator.axis != "rows")

    def _table(self, counts: Array, operators: Iterable[Operator], *, overhead: bool = True) -> array[float]:
        total, floor = np.zeros_like(counts), np.zeros_like(counts)
        for operator in operators:
            total += self.seconds(operator, counts)
            floor += operator.seconds(self.ideal, self._local(operator, counts))
        if overhead:
            total = np.maximum(total + self._overhead, floor)
        return array("d", [0.0, *total.tolist()])
