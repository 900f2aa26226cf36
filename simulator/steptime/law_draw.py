"""How uncertain a law is: intervals for one operator, draws for a whole device.

Two things can be wrong. The coefficients, within the covariance of their fit; and the law's form, by which
a shape it has not seen is off by ``spread`` (standard deviation of ln(measured / predicted) on held-out
shapes). A model has few shapes and runs them in every step, so a draw moves all of a law's predictions
together by one factor. Errors of two laws of one device correlate by `BETWEEN_LAWS`: clocks and power move
all kernels.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from hwprofiles import Law

__all__ = ["BETWEEN_LAWS", "draw_laws", "interval_factors"]

BETWEEN_LAWS = 0.5
"""Correlation of the errors of two laws of one device. Assumed."""

Key = tuple[str, str, str]


def interval_factors(law: Law, probability: float) -> tuple[float, float]:
    """(low, high): factors around a prediction that cover *probability* of the shapes the fit has not seen.

    From the held-out quantiles where the fit kept them, else lognormal with the law's spread.
    """
    tails = ((1.0 - probability) / 2.0, (1.0 + probability) / 2.0)
    if law.quantiles:
        levels = sorted((float(level), value) for level, value in law.quantiles.items())
        low, high = np.interp(tails, [level for level, _ in levels], [value for _, value in levels])
        return math.exp(low), math.exp(high)
    width = law.spread * NormalDist().inv_cdf(tails[1])
    return math.exp(-width), math.exp(width)


def draw_laws(laws: list[Law], rng: np.random.Generator) -> tuple[list[Law], dict[Key, float]]:
    """The laws with coefficients drawn from their covariance, and the factor drawn for each law's form."""
    common = rng.standard_normal()
    shared, own = math.sqrt(BETWEEN_LAWS), math.sqrt(1.0 - BETWEEN_LAWS)
    scales = {law.key: math.exp(law.spread * (shared * common + own * rng.standard_normal())) for law in laws}
    return [_draw_coefficients(law, rng) for law in laws], scales


def _draw_coefficients(law: Law, rng: np.random.Generator) -> Law:
    if not law.covariance:
        return law
    zeros = np.zeros(len(law.covariance))
    # rounding to four digits leaves a matrix that is positive only nearly
    steps = rng.multivariate_normal(zeros, law.covariance, method="eigh", check_valid="ignore")
    drawn = {
        name: _bounded(name, value * math.exp(step))
        for (name, value), step in zip(law.coefficients.items(), steps, strict=True)
    }
    return law.model_copy(update={"coefficients": drawn})


def _bounded(name: str, value: float) -> float:
    """Efficiencies and shares stay at most 1."""
    return min(value, 1.0) if name.startswith(("ec", "eb", "ea", "wave")) else value
