"""The smooth law of every operator family, and the fitted correction it may carry.

    t = t0 + ((F / (ec P))^p + (B / (eb W))^p)^(1/p)

F FLOPs, B bytes, P peak, W bandwidth. A hard roofline ``max()`` errs two to four times as much near its knee, where
serving lives, because loads and multiplications overlap only in part; *p* says how well they do.

Inside the fitted range ln(measured / law) is added from a grid of at most 200 knots, linear between knots in log2
coordinates. Outside it is held at the edge and fades over a few octaves, so there is no jump.

All laws take scalars or numpy arrays; scalars stay Python floats, which is what makes a step cheap to evaluate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles import Residual

__all__ = ["Grid", "Number", "at_least", "log2", "p_norm", "residual_factor"]

Number = Any
"""A float or an array of them; a law returns what it was given."""


def p_norm(compute: Number, memory: Number, p: float) -> Number:
    """(compute^p + memory^p)^(1/p) for times in seconds; scaled by the larger, so that no power underflows."""
    top = at_least(compute, memory)
    return top * ((compute / top) ** p + (memory / top) ** p) ** (1.0 / p)


def at_least(value: Number, bound: Number) -> Number:
    """The larger of the two, elementwise for arrays."""
    if isinstance(value, np.ndarray) or isinstance(bound, np.ndarray):
        return np.maximum(value, bound)
    return value if value > bound else bound


def log2(value: Number) -> Number:
    """Base-2 logarithm; values below 2^-20 count as 2^-20."""
    if isinstance(value, np.ndarray):
        return np.log2(np.maximum(value, 2.0**-20))
    return math.log2(value) if value > 2.0**-20 else -20.0


class Grid:
    """A residual of a profile, ready to be evaluated."""

    def __init__(self, residual: Residual) -> None:
        self.axes = [list(knots) for knots in residual.axes.values()]
        self.names = list(residual.axes)
        self.values = np.asarray(residual.values, dtype=float).reshape([len(knots) for knots in self.axes])
        self.nested = self.values.tolist()
        self.fade = residual.fade

    def __call__(self, *coordinates: Number) -> Number:
        """ln(measured / law) at log2 *coordinates*, one per axis."""
        if any(isinstance(coordinate, np.ndarray) for coordinate in coordinates):
            return self._many(np.broadcast_arrays(*coordinates))
        outside = 0.0
        node: Any = self.nested
        value, outside = _interpolate(node, self.axes, coordinates, 0)
        return value * math.exp(-outside / self.fade) if outside > 0 else value

    def _many(self, coordinates: list[NDArray[Any]]) -> NDArray[np.float64]:
        places = [
            _locate(np.asarray(c, float), knots) for c, knots in zip(coordinates, self.axes, strict=True)
        ]
        total = np.zeros(np.shape(coordinates[0]))
        for corner in product((0, 1), repeat=len(places)):
            weight = np.ones_like(total)
            for side, (_, fraction, _) in zip(corner, places, strict=True):
                weight = weight * (fraction if side else 1.0 - fraction)
            index = tuple(low + side for side, (low, _, _) in zip(corner, places, strict=True))
            total += weight * self.values[index]
        outside = np.sum([out for _, _, out in places], axis=0)
        return np.asarray(total * np.exp(-outside / self.fade))

    def fixed(self, coordinate: float) -> Grid:
        """The grid with its last axis fixed at *coordinate* (which may lie outside: it fades)."""
        low, fraction, outside = _place(self.axes[-1], coordinate)
        values = self.values[..., low] * (1.0 - fraction) + self.values[..., low + 1] * fraction
        smaller = object.__new__(Grid)
        smaller.axes, smaller.names, smaller.fade = self.axes[:-1], self.names[:-1], self.fade
        smaller.values = values * math.exp(-outside / self.fade)
        smaller.nested = smaller.values.tolist()
        return smaller


def residual_factor(grid: Grid | None, *values: Number) -> Number:
    """The factor by which *grid* corrects a law at *values* (not logarithms); 1 without a grid."""
    if grid is None:
        return 1.0
    exponent = grid(*(log2(value) for value in values))
    return np.exp(exponent) if isinstance(exponent, np.ndarray) else math.exp(exponent)


def _place(knots: list[float], x: float) -> tuple[int, float, float]:
    """(index of the knot below, fraction of the way to the next, octaves outside the grid)."""
    if x <= knots[0]:
        return 0, 0.0, knots[0] - x
    if x >= knots[-1]:
        return len(knots) - 2, 1.0, x - knots[-1]
    low = bisect_right(knots, x) - 1
    return low, (x - knots[low]) / (knots[low + 1] - knots[low]), 0.0


def _locate(x: NDArray[Any], knots: list[float]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """`_place` for an array."""
    edges = np.asarray(knots)
    inside = np.clip(x, edges[0], edges[-1])
    low = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(edges) - 2)
    return low, (inside - edges[low]) / (edges[low + 1] - edges[low]), np.abs(x - inside)


def _interpolate(
    node: Any, axes: list[list[float]], point: tuple[Number, ...], depth: int
) -> tuple[float, float]:
    """(multilinear value, octaves outside the grid), one axis after the other."""
    low, fraction, outside = _place(axes[depth], point[depth])
    if depth + 1 == len(axes):
        below, above = node[low], node[low + 1]
        return below + fraction * (above - below), outside
    below, out = _interpolate(node[low], axes, point, depth + 1)
    if fraction:
        above, _ = _interpolate(node[low + 1], axes, point, depth + 1)
        below += fraction * (above - below)
    return below, out + outside
