"""Fitting the smooth law: a few coefficients by robust least squares on ln(measured / law)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibrate.fit.families import predict_rows, searched, with_all_groups
from hwprofiles import HardwareProfile
from simulator.steptime.law_form import OperatorLaw
from simulator.steptime.laws import FAMILY_LAWS, law_device

__all__ = ["SmoothLaw"]

Vector = NDArray[np.float64]

SHARES = ("ec", "eb", "ea", "wave")
"""Coefficients between 0 and 1, by prefix: searched as logits."""
LEAST_P = 0.8
"""Orders of the norm lie above it: searched as ln(p - LEAST_P)."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


class SmoothLaw:
    """The coefficients of one law.

    *robust* is the ln-residual from which a row's pull no longer grows (soft L1); *prior* the weight of the
    start values, which settles only what the data leave open.
    """

    def __init__(
        self,
        family: str,
        profile: HardwareProfile,
        dtype: str,
        choice: Mapping[str, float] | None = None,
        robust: float = 0.1,
        prior: float = 0.02,
    ) -> None:
        self.family, self.profile, self.dtype = family, profile, dtype
        self.choice, self.robust, self.prior = choice, robust, prior

    def fit(self, frame: pd.DataFrame, groups: NDArray[np.int64] | None = None) -> Self:
        """Search the coefficients on the rows of *frame*; *groups* (a shape's number per row) enter their
        covariance."""
        start, self.fixed_ = searched(self.family, frame)
        names = list(start)
        origin = np.array([_inward(name, start[name]) for name in names])
        measured = np.log(frame["seconds"].to_numpy(float))

        def deviations(point: Vector) -> Vector:
            predicted = np.log(predict_rows(self._law(names, point), self.family, frame))
            return np.concatenate([predicted - measured, self.prior * (point - origin)])

        found = least_squares(deviations, origin, loss="soft_l1", f_scale=self.robust)
        point = np.asarray(found.x, dtype=float)
        self.coefficients_ = self._coefficients(names, point)
        self.covariance_ = self._covariance(names, point, found, groups, len(frame))
        return self

    def predict(self, frame: pd.DataFrame) -> Vector:
        """Seconds of every row by the smooth law."""
        return predict_rows(self.law(), self.family, frame)

    def law(self) -> OperatorLaw:
        """The fitted law, without correction."""
        return self._bind(self.coefficients_)

    def _law(self, names: list[str], point: Vector) -> OperatorLaw:
        return self._bind(self._coefficients(names, point))

    def _bind(self, coefficients: Mapping[str, float]) -> OperatorLaw:
        label = self.family if self.family in COLLECTIVES else self.dtype
        return FAMILY_LAWS[self.family](
            coefficients, label, law_device(self.profile, self.family, self.dtype)
        )

    def _coefficients(self, names: list[str], point: Vector) -> dict[str, float]:
        searched = {name: _outward(name, value) for name, value in zip(names, point.tolist(), strict=True)}
        found = {**searched, **(self.choice or {}), **self.fixed_}
        return with_all_groups(self.family, found) if self.family in COLLECTIVES else found

    def _covariance(
        self, names: list[str], point: Vector, found: object, groups: NDArray[np.int64] | None, rows: int
    ) -> list[list[float]]:
        """Of ln(coefficient), rows of a shape taken as one observation (sandwich); zero for what was not
        searched."""
        jacobian = np.asarray(found.jac)  # type: ignore[attr-defined]
        residuals = np.asarray(found.fun)[:rows]  # type: ignore[attr-defined]
        bread = np.linalg.pinv(jacobian.T @ jacobian)
        labels = np.arange(rows) if groups is None else groups
        scores = np.zeros((int(labels.max()) + 1, len(names)))
        np.add.at(scores, labels, jacobian[:rows] * residuals[:, None])
        pulls = scores @ bread
        spread = pulls.T @ pulls
        slopes = np.array([_slope(name, value) for name, value in zip(names, point.tolist(), strict=True)])
        size = len(self.coefficients_)
        whole = np.zeros((size, size))
        whole[: len(names), : len(names)] = spread * np.outer(slopes, slopes)
        return [[float(f"{value:.4g}") for value in line] for line in whole]


def _inward(name: str, value: float) -> float:
    """The unbounded number searched for a coefficient."""
    if name.startswith(SHARES):
        return float(np.log(value / (1.0 - value)))
    if name == "p":
        return float(np.log(value - LEAST_P))
    return float(np.log(value))


def _outward(name: str, point: float) -> float:
    """The inverse of `_inward`."""
    if name.startswith(SHARES):
        return float(1.0 / (1.0 + np.exp(-np.clip(point, -30, 30))))
    bounded = float(np.exp(np.clip(point, -40, 2)))
    return LEAST_P + bounded if name == "p" else bounded


def _slope(name: str, point: float) -> float:
    """d ln(coefficient) / d point."""
    value = _outward(name, point)
    if name.startswith(SHARES):
        return 1.0 - value
    return (value - LEAST_P) / value if name == "p" else 1.0
