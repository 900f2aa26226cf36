"""Laws as tables that plain Python reads in a fraction of a microsecond.

A fitted law costs tens of microseconds per call, a simulated step may cost two. So a law is evaluated once,
by numpy, at 8 knots per octave, and read by linear interpolation. ``math.frexp`` splits x into m·2^e exactly,
so the knot below x is found without a logarithm, and scalar and numpy reads agree to the last bit. A law is
nearly linear between such knots: on fitted laws the error is below 0.02 % in the mean and 1 % at the corner
of a window or a roofline. The physical floor is convex, so what is above it at the knots is above it between.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from math import frexp
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulator.compiled.attributes import attributes_of, mypyc_attr, set_attributes

__all__ = ["KNOTS", "ChunkTable", "curve_knots", "octaves", "read_curve", "read_curve_many"]

KNOTS = 8
"""Knots per octave; doubled it is the scale of frexp's mantissa in [0.5, 1)."""

EXACT_CHUNKS = 256
"""Chunks up to this length have a row of their own: a tile is a large part of them."""

Array: TypeAlias = NDArray[np.float64]


def octaves(largest: float) -> int:
    """Octaves from 1 up to and over *largest*."""
    return frexp(largest)[1] + 1


def curve_knots(num_octaves: int) -> Array:
    """Positions of the knots: 1, 1 + 1/8, ... 2, 2 + 1/4, ..."""
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


@mypyc_attr(allow_interpreted_subclasses=True)
class ChunkTable:
    """A law of (chunk >= 1, context >= 0), read bilinearly.

    Kernels work on whole tiles of a chunk, so the law is a staircase in it. Rows lie at every chunk to 256,
    and beyond on both sides of every possible step, at 16j + 1 and 16j + 16. A block of neighbouring rows is
    evaluated when first asked for. The context axis is shifted by one token: no context is its first knot.
    """

    def __init__(self, law: Callable[[Array, Array], Array], max_context: int) -> None:
        self.law, self.max_context = law, max_context
        self.contexts = curve_knots(octaves(max_context + 1)) - 1.0
        self.columns = len(self.contexts)
        self.short: dict[int, array[float]] = {}
        self.long: dict[int, array[float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return attributes_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)

    def read(self, chunk: int, context: int) -> float:
        """The law at one point; *context* at most ``max_context``."""
        chunk -= 1
        mantissa, exponent = frexp(context + 1)
        place = (mantissa - 0.5) * (2 * KNOTS)
        step = int(place)
        place -= step
        at = (exponent - 1) * KNOTS + step
        if chunk < EXACT_CHUNKS:
            v = self.short.get(chunk >> 6) or self._short_block(chunk >> 6)
            at += (chunk & 63) * self.columns
            return v[at] + place * (v[at + 1] - v[at])
        v = self.long.get(chunk >> 10) or self._long_block(chunk >> 10)
        at += ((chunk & 1023) >> 4) * 2 * self.columns
        first = v[at] + place * (v[at + 1] - v[at])
        at += self.columns
        last = v[at] + place * (v[at + 1] - v[at])
        return first + (chunk & 15) / 15 * (last - first)

    def _short_block(self, index: int) -> array[float]:
        self.short[index] = block = self._rows(64.0 * index + np.arange(1.0, 65.0))
        return block

    def _long_block(self, index: int) -> array[float]:
        steps = 1024.0 * index + np.arange(0.0, 1024.0, 16.0)
        self.long[index] = block = self._rows(np.stack([steps + 1.0, steps + 16.0], axis=1).ravel())
        return block

    def _rows(self, chunks: Array) -> array[float]:
        return array("d", self.law(chunks[:, None], self.contexts[None, :]).ravel().tolist())
