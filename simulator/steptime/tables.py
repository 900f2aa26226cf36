"""Smooth laws as tables that plain Python reads in a fraction of a microsecond.

A fitted law costs tens of microseconds per call, a simulated step may cost two. So a law is evaluated once,
by numpy, at 16 knots per octave, and read by linear interpolation. ``math.frexp`` splits x into m·2^e
exactly, so the knot below x is found without a logarithm, and scalar and numpy reads agree to the last bit.
Between knots a law t ~ x^a errs by at most (1/16)²/8·a(a-1), 0.1 % at a = 2; the physical floor is convex,
so what is above it at the knots is above it between them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from math import frexp

import numpy as np
from numpy.typing import NDArray

__all__ = ["KNOTS", "SurfaceTable", "curve_knots", "octaves", "read_curve", "read_curve_many"]

KNOTS = 16
"""Knots per octave; doubled it is the scale of frexp's mantissa in [0.5, 1)."""

Array = NDArray[np.float64]


def octaves(largest: float) -> int:
    """Octaves from 1 up to and over *largest*."""
    return frexp(largest)[1] + 1


def curve_knots(num_octaves: int) -> Array:
    """Positions of the knots: 1, 1 + 1/16, ... 2, 2 + 1/8, ..."""
    steps = 1.0 + np.arange(KNOTS) / KNOTS
    return np.concatenate([np.ldexp(steps, octave) for octave in range(num_octaves)])


def read_curve(knots: array[float], x: float) -> float:
    """The table at *x* >= 1; IndexError beyond its end."""
    mantissa, exponent = frexp(x)
    place = (mantissa - 0.5) * (2 * KNOTS)
    step = int(place)
    at = (exponent - 1) * KNOTS + step
    low = knots[at]
    return low + (place - step) * (knots[at + 1] - low)


def read_curve_many(knots: array[float], x: Array) -> Array:
    """`read_curve` for an array, bit for bit."""
    values = np.frombuffer(knots)
    mantissa, exponent = np.frexp(x)
    place = (mantissa - 0.5) * (2 * KNOTS)
    step = place.astype(np.int64)
    at = (exponent.astype(np.int64) - 1) * KNOTS + step
    low = values[at]
    return np.asarray(low + (place - step) * (values[at + 1] - low))


class SurfaceTable:
    """A law of (chunk >= 1, context >= 0) on a grid of knots, read bilinearly.

    The context axis is shifted by one token, so that no context is its first knot.
    """

    def __init__(self, law: Callable[[Array, Array], Array], max_chunk: float, max_context: float) -> None:
        self.max_chunk, self.max_context = max_chunk, max_context
        rows, columns = curve_knots(octaves(max_chunk)), curve_knots(octaves(max_context + 1))
        self.columns = len(columns)
        self.values = array("d", law(rows[:, None], columns[None, :] - 1.0).ravel().tolist())

    @classmethod
    def empty(cls) -> SurfaceTable:
        """A table that reaches nowhere."""
        table = cls(lambda c, _: c, 1.0, 0.0)
        table.max_chunk = 0.0
        return table

    def read(self, chunk: int, context: int) -> float:
        """The law at one point inside the table."""
        mantissa, exponent = frexp(chunk)
        row = (mantissa - 0.5) * (2 * KNOTS)
        i = int(row)
        row -= i
        mantissa, exponent2 = frexp(context + 1)
        column = (mantissa - 0.5) * (2 * KNOTS)
        j = int(column)
        column -= j
        at = ((exponent - 1) * KNOTS + i) * self.columns + (exponent2 - 1) * KNOTS + j
        v, below = self.values, at + self.columns
        top = v[at] + column * (v[at + 1] - v[at])
        bottom = v[below] + column * (v[below + 1] - v[below])
        return top + row * (bottom - top)
