"""Fitting the correction: ln(measured / law) on a grid of knots, linear in between, stiff where data are few.

A penalised tensor-product spline of degree one (P. Eilers, B. Marx, "Flexible smoothing with B-splines and
penalties", 1996): squared second differences along every axis keep it from following single rows. Rows are
reweighted so that the mean absolute relative error is what is minimised, not its square.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from calibrate.fit.families import Axis
from hwprofiles import Residual
from simulator.steptime.law_form import Grid, locate

__all__ = ["Surface"]

Vector = NDArray[np.float64]


class Surface:
    """A correction on the grid spanned by *axes*.

    *ridge* pulls every knot to zero, *softness* is the relative error below which the loss is quadratic,
    *fade* the octaves over which the correction dies outside the grid.
    """

    def __init__(
        self,
        axes: tuple[Axis, ...],
        ridge: float = 0.02,
        softness: float = 0.03,
        fade: float = 3.0,
        iterations: int = 12,
    ) -> None:
        self.axes, self.ridge, self.softness = axes, ridge, softness
        self.fade, self.iterations = fade, iterations

    def fit(self, coordinates: list[Vector], logs: Vector) -> Self:
        """Fit the knots to *logs* = ln(measured / law) at log2 *coordinates*, one array per axis."""
        self.knots_ = [place_knots(axis, x) for axis, x in zip(self.axes, coordinates, strict=True)]
        design = self._design(coordinates)
        penalty = self._penalty()
        weights = np.ones(len(logs))
        for _ in range(self.iterations):
            weighted = design * weights[:, None]
            self.values_ = np.linalg.solve(weighted.T @ design + penalty, weighted.T @ logs)
            weights = relative_weights(logs - design @ self.values_, self.softness)
        return self

    def predict(self, coordinates: list[Vector]) -> Vector:
        """ln(measured / law) at log2 *coordinates*."""
        return np.asarray(Grid(self.residual())(*coordinates))

    def residual(self) -> Residual:
        """The block of a profile."""
        axes = {axis.name: knots for axis, knots in zip(self.axes, self.knots_, strict=True)}
        return Residual(axes=axes, values=[round(float(value), 5) for value in self.values_], fade=self.fade)

    def _design(self, coordinates: list[Vector]) -> Vector:
        """Weight of every knot (column) in every row."""
        rows = np.ones((len(coordinates[0]), 1))
        outside = np.zeros(len(coordinates[0]))
        for x, knots in zip(coordinates, self.knots_, strict=True):
            hats, beyond = _hats(x, knots)
            rows = (rows[:, :, None] * hats[:, None, :]).reshape(len(x), -1)
            outside += beyond
        return np.asarray(rows * np.exp(-outside / self.fade)[:, None])

    def _penalty(self) -> Vector:
        sizes = [len(knots) for knots in self.knots_]
        total = self.ridge * np.eye(int(np.prod(sizes)))
        for place, axis in enumerate(self.axes):
            factors = [np.eye(size) for size in sizes]
            differences = np.diff(np.eye(sizes[place]), min(2, sizes[place] - 1), axis=0)
            factors[place] = differences.T @ differences
            total += axis.stiffness * _kronecker(factors)
        return total


def relative_weights(logs: Vector, softness: float) -> Vector:
    """Weights that make least squares on *logs* minimise sum |predicted / measured - 1|."""
    away = np.where(np.abs(logs) < 1e-6, 1e-6, logs)
    error = np.expm1(-away)  # predicted / measured - 1
    slope = -error / away * np.exp(-away)
    return np.clip(slope * softness / np.hypot(error, softness), 1e-3, 5.0)


def place_knots(axis: Axis, x: Vector) -> list[float]:
    """The knots of *axis* that the data *x* call for, at least two."""
    if isinstance(axis.knots, int):
        levels = np.quantile(np.unique(x), np.linspace(0.0, 1.0, axis.knots))
        knots = sorted({round(float(level), 3) for level in levels})
        return knots if len(knots) > 1 else [knots[0], knots[0] + 1.0]
    knots = list(axis.knots)
    low = max((i for i, knot in enumerate(knots) if knot <= x.min()), default=0)
    high = min((i for i, knot in enumerate(knots) if knot >= x.max()), default=len(knots) - 1)
    low, high = (low, high) if high > low else (max(0, low - 1), max(1, low))
    return knots[low : high + 1]


def _hats(x: Vector, knots: list[float]) -> tuple[Vector, Vector]:
    """(weights of the knots of one axis, octaves outside)."""
    low, fraction, outside = locate(x, knots)
    hats = np.zeros((len(x), len(knots)))
    rows = np.arange(len(x))
    hats[rows, low], hats[rows, low + 1] = 1.0 - fraction, fraction
    return hats, np.asarray(outside, dtype=float)


def _kronecker(factors: list[Any]) -> Vector:
    product = np.eye(1)
    for factor in factors:
        product = np.kron(product, factor)
    return product
