"""The smooth law of every operator family, and the fitted correction it may carry.

    t = t0 + ((F / (ec P))^p + (B / (eb W))^p)^(1/p)

F FLOPs, B bytes, P peak, W bandwidth. A hard roofline ``max()`` errs two to four times as much near its knee,
where serving lives, because loads and multiplications overlap only in part; *p* says how well they do.

Inside the fitted range ln(measured / law) is added from a grid of at most 200 knots, linear between knots in
log2 coordinates. Outside it is held at the edge and fades over a few octaves, so there is no jump.

All laws take scalars or numpy arrays; scalars stay Python floats, which is what makes a step cheap.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles import Residual

__all__ = [
    "LEAST_LOG2",
    "Device",
    "Grid",
    "Number",
    "OperatorLaw",
    "at_least",
    "ceil",
    "choose",
    "locate",
    "log2",
    "p_norm",
]

LEAST_LOG2 = -20.0
"""Logarithm that stands for zero."""

Number = Any
"""A float or an array of them; a law returns what it was given."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a law needs of the datasheet."""

    peak: float
    """FLOP/s in the dtype of the law."""
    bandwidth: float
    """Memory, B/s."""
    link: float
    """What the law's bytes cross, one direction, B/s: GPU to GPU, PCIe for a swap, memory for a copy on the device."""
    num_sms: int
    l2: float = 0.0
    """L2 cache, bytes; nought where it is not known, so that all comes from memory."""


class OperatorLaw:
    """Base of the families: smooth part, correction, and the floor that no kernel goes below.

    A family defines `smooth` (seconds), `coordinates` (of the correction, not logarithms) and `floor`
    (seconds at peak rates), all of the same arguments.
    """

    def __init__(
        self,
        coefficients: Mapping[str, float],
        dtype: str,
        device: Device,
        grid: Grid | None = None,
        scale: float = 1.0,
    ) -> None:
        self.coefficients, self.dtype, self.device = dict(coefficients), dtype, device
        self.grid, self.scale = grid, scale

    def smooth(self, *arguments: Number) -> Number:
        """Seconds by the smooth law alone."""
        raise NotImplementedError

    def coordinates(self, *arguments: Number) -> tuple[Number, ...]:
        """Where on the grid of the correction the shape lies, one value per axis."""
        raise NotImplementedError

    def floor(self, *arguments: Number) -> Number:
        """Seconds at peak FLOPs and bandwidth."""
        raise NotImplementedError

    def __call__(self, *arguments: Number) -> Number:
        """Seconds of the shape; never below `floor`."""
        seconds = self.smooth(*arguments) * self.scale
        if self.grid is not None:
            seconds = seconds * self.grid.factor(*self.coordinates(*arguments))
        return at_least(seconds, self.floor(*arguments))


def p_norm(one: Number, other: Number, p: float) -> Number:
    """(one^p + other^p)^(1/p) of two times; scaled by the larger, so that no power underflows."""
    top = at_least(at_least(one, other), 1e-30)
    return top * ((one / top) ** p + (other / top) ** p) ** (1.0 / p)


def at_least(value: Number, bound: Number) -> Number:
    """The larger of the two, elementwise for arrays."""
    if isinstance(value, np.ndarray) or isinstance(bound, np.ndarray):
        return np.maximum(value, bound)
    return value if value > bound else bound


def choose(condition: Number, yes: Number, no: Number) -> Number:
    """*yes* where *condition* holds, else *no*."""
    return np.where(condition, yes, no) if isinstance(condition, np.ndarray) else yes if condition else no


def ceil(value: Number) -> Number:
    """Whole number not below *value*."""
    return np.ceil(value) if isinstance(value, np.ndarray) else math.ceil(value)


def log2(value: Number) -> Number:
    """Base-2 logarithm; values below 2^-20 count as 2^-20."""
    if isinstance(value, np.ndarray):
        return np.log2(np.maximum(value, 2.0**LEAST_LOG2))
    return math.log2(value) if value > 2.0**LEAST_LOG2 else LEAST_LOG2


class Grid:
    """A residual of a profile, ready to be evaluated."""

    def __init__(self, residual: Residual) -> None:
        self.axes = [list(knots) for knots in residual.axes.values()]
        self.values = np.asarray(residual.values, dtype=float).reshape([len(knots) for knots in self.axes])
        self.nested = self.values.tolist()
        self.fade = residual.fade

    def factor(self, *values: Number) -> Number:
        """measured / law at *values*, one per axis (not logarithms)."""
        exponent = self(*(log2(value) for value in values))
        return np.exp(exponent) if isinstance(exponent, np.ndarray) else math.exp(exponent)

    def __call__(self, *coordinates: Number) -> Number:
        """ln(measured / law) at log2 *coordinates*, one per axis."""
        if any(isinstance(coordinate, np.ndarray) for coordinate in coordinates):
            return self._many(np.broadcast_arrays(*coordinates))
        value, outside = _interpolate(self.nested, self.axes, coordinates, 0)
        return value * math.exp(-outside / self.fade) if outside > 0 else value

    def plane(self, x: float, y: float) -> float:
        """ln(measured / law) on a grid of two axes, at one point: what a decode step evaluates."""
        xs, ys = self.axes
        i, u, beyond_x = _place(xs, x)
        j, v, beyond_y = _place(ys, y)
        lower, upper = self.nested[i], self.nested[i + 1]
        below = lower[j] + v * (lower[j + 1] - lower[j])
        value = below + u * (upper[j] + v * (upper[j + 1] - upper[j]) - below)
        outside = beyond_x + beyond_y
        return float(value * math.exp(-outside / self.fade) if outside > 0.0 else value)

    def _many(self, coordinates: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
        places = [
            locate(np.asarray(c, float), knots) for c, knots in zip(coordinates, self.axes, strict=True)
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
        """The grid with its last axis fixed at log2 *coordinate*."""
        low, fraction, outside = _place(self.axes[-1], coordinate)
        values = self.values[..., low] * (1.0 - fraction) + self.values[..., low + 1] * fraction
        smaller = object.__new__(Grid)
        smaller.axes, smaller.fade = self.axes[:-1], self.fade
        smaller.values = values * math.exp(-outside / self.fade)
        smaller.nested = smaller.values.tolist()
        return smaller


def locate(x: NDArray[Any], knots: list[float]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(knot below, fraction of the way to the next, octaves outside the grid) of every value."""
    edges = np.asarray(knots)
    inside = np.clip(x, edges[0], edges[-1])
    low = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(edges) - 2)
    return low, (inside - edges[low]) / (edges[low + 1] - edges[low]), np.abs(x - inside)


def _place(knots: list[float], x: float) -> tuple[int, float, float]:
    """`locate` for one value."""
    if x <= knots[0]:
        return 0, 0.0, knots[0] - x
    if x >= knots[-1]:
        return len(knots) - 2, 1.0, x - knots[-1]
    low = bisect_right(knots, x) - 1
    return low, (x - knots[low]) / (knots[low + 1] - knots[low]), 0.0


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
