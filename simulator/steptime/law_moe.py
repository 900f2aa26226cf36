"""Fused mixture-of-experts layer on one device: gate-and-up and down projections of the routed experts.

Work follows tokens, weights follow *touched experts*: a few tokens touch few of them. Under expert parallelism a rank
holds num_experts / ep of them and the slowest rank sets the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprofiles import DTYPES, Law
from simulator.steptime.law_form import Grid, Number, at_least, p_norm, residual_factor

__all__ = ["MoeLaw", "touched_experts"]

MATRICES = 3
"""Gate, up and down."""


def touched_experts(num_tokens: Number, topk: int, num_experts: int, distribution: str) -> Number:
    """Experts that at least one token is routed to.

    ``balanced`` spreads the T topk choices evenly: min(E, T topk). Any other is taken as independent choices:
    E (1 - (1 - topk / E)^T) in the mean.
    """
    if distribution == "balanced":
        choices = num_tokens * topk
        return (
            np.minimum(choices, num_experts) if isinstance(choices, np.ndarray) else min(choices, num_experts)
        )
    return num_experts * (1.0 - (1.0 - topk / num_experts) ** num_tokens)


@dataclass(frozen=True, slots=True)
class MoeLaw:
    """Seconds of the routed experts of one layer on one rank."""

    law: Law
    grid: Grid | None
    peak: float
    bandwidth: float
    scale: float = 1.0

    def __call__(
        self,
        num_tokens: Number,
        hidden: int,
        inter: int,
        topk: int,
        num_experts: int,
        tp: int = 1,
        ep: int = 1,
        distribution: str = "balanced",
    ) -> Number:
        c, kind = self.law.coefficients, DTYPES[self.law.dtype]
        matrix = hidden * inter / tp  # elements of one matrix of one expert on this rank
        rows = num_tokens * topk / ep
        experts = touched_experts(num_tokens, topk, num_experts, distribution) / ep
        compute = 2.0 * MATRICES * rows * matrix / self.peak
        moved = MATRICES * kind.weight_bytes * experts * matrix + 4.0 * num_tokens * hidden
        memory = moved / self.bandwidth
        smooth = c["t0"] + p_norm(compute / c["ec"], memory / c["eb"], c["p"])
        rows_per_expert = rows / at_least(experts, 1.0)
        seconds = smooth * residual_factor(self.grid, rows_per_expert, matrix, num_experts / ep) * self.scale
        return at_least(seconds, at_least(compute, memory))
