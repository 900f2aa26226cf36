"""Fused mixture-of-experts layer on one device: gate-and-up and down projections of the routed experts.

Work follows tokens, weights follow *touched experts*: a few tokens touch few of them. Routed rows are
gathered, pass between the two products and are summed: traffic that grows with tokens times top-k. Under
expert parallelism a rank holds num_experts / ep of the experts and sees its share of the choices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles import DTYPES
from simulator.errors import ConfigurationError
from simulator.steptime.law_form import Number, OperatorLaw, at_least, p_norm

__all__ = ["MoeLaw", "touched_experts"]

MATRICES = 3
"""Gate, up and down."""

ZIPF_PER_ALPHA = 0.6
"""Exponent of the experts' popularity for a ``power_law_a`` of the measured tables, per unit of a:
reproduces the time at few tokens, where only the touched experts count."""


def zipf_exponent(distribution: str) -> float | None:
    """Popularity exponent of a routing: none for ``balanced``, 0 for ``uniform``, 0.6 a for
    ``power_law_a``."""
    if distribution == "balanced":
        return None
    if distribution == "uniform":
        return 0.0
    head, _, alpha = distribution.rpartition("_")
    if head != "power_law" or not alpha.replace(".", "", 1).isdigit():
        raise ConfigurationError(f"distribution {distribution!r}: balanced, uniform or power_law_<number>")
    return ZIPF_PER_ALPHA * float(alpha)


@lru_cache(maxsize=256)
def _chosen(topk: int, num_experts: int, exponent: float) -> NDArray[np.float64]:
    """Probability that a token picks each expert: top-k times popularity, at most 1."""
    popularity = np.arange(1.0, num_experts + 1.0) ** -exponent
    chosen: NDArray[np.float64] = np.minimum(1.0, topk * popularity / popularity.sum())
    for _ in range(8):  # what the sure ones cannot take goes to the rest
        rest = chosen < 1.0
        if not rest.any():
            break
        chosen[rest] = np.minimum(1.0, chosen[rest] * (topk - (~rest).sum()) / chosen[rest].sum())
    return chosen


def touched_experts(num_tokens: Number, topk: int, num_experts: int, distribution: str) -> Number:
    """Experts that at least one token is routed to.

    ``balanced`` deals the choices out evenly: min(E, T topk). Otherwise tokens choose independently with the
    experts' popularity: the mean of the distinct ones.
    """
    exponent = zipf_exponent(distribution)
    if exponent is None:
        choices = num_tokens * topk
        return (
            np.minimum(choices, num_experts) if isinstance(choices, np.ndarray) else min(choices, num_experts)
        )
    missed = (1.0 - _chosen(topk, num_experts, exponent)) ** np.expand_dims(num_tokens, -1)
    distinct = num_experts - missed.sum(axis=-1)
    return distinct if isinstance(num_tokens, np.ndarray) else float(distinct)


class MoeLaw(OperatorLaw):
    """Seconds for arguments (num_tokens, hidden, inter, topk, num_experts, tp, ep, experts) of one rank.

    *experts* is `touched_experts` of the whole layer. Coefficients: ``t0`` s, ``ec``, ``eb``, ``ea``
    (efficiency of the activation traffic), ``p``.
    """

    def _times(
        self,
        num_tokens: Number,
        hidden: Number,
        inter: Number,
        topk: Number,
        num_experts: Number,
        tp: Number,
        ep: Number,
        experts: Number,
    ) -> tuple[Number, Number, Number]:
        """(compute, weights, activations) in seconds at peak rates."""
        matrix = hidden * inter / tp  # elements of one matrix of one expert on this rank
        rows = num_tokens * topk / ep
        compute = 2.0 * MATRICES * rows * matrix / self.device.peak
        weights = MATRICES * DTYPES[self.dtype].weight_bytes * experts / ep * matrix / self.device.bandwidth
        # read and written in bf16: tokens once; routed rows in and out, and three widths between the products
        moved = 4.0 * num_tokens * hidden + 4.0 * rows * (2.0 * hidden + 3.0 * inter / tp)
        return compute, weights, moved / self.device.bandwidth

    def smooth(self, *arguments: Number) -> Number:
        """Launches and activation traffic, then compute against weights."""
        c = self.coefficients
        compute, weights, activations = self._times(*arguments)
        return c["t0"] + activations / c["ea"] + p_norm(compute / c["ec"], weights / c["eb"], c["p"])

    def coordinates(
        self,
        num_tokens: Number,
        hidden: Number,
        inter: Number,
        topk: Number,
        num_experts: Number,
        tp: Number,
        ep: Number,
        experts: Number,
    ) -> tuple[Number, ...]:
        """Rows per touched expert, elements of one matrix of one expert."""
        return num_tokens * topk / at_least(experts, 1.0), hidden * inter / tp

    def floor(self, *arguments: Number) -> Number:
        """Peak FLOPs, or weights at peak bandwidth (activations may stay in L2)."""
        compute, weights, _ = self._times(*arguments)
        return at_least(compute, weights)
