"""Rows of a `StepSeries` folded into points: integrals, maxima and sums that further folding keeps exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
Points: TypeAlias = dict[str, _Floats]
"""``time``, ``span`` [n] in s; ``integral``, ``max`` [n, len(LEVELS)]; ``amount`` [n, len(AMOUNTS)]."""

LEVELS = (
    "num_running",
    "num_waiting",
    "num_decodes",
    "kv_blocks_used",
    "kv_blocks_cached",
    "waste_reserved",
    "waste_internal",
    "waste_external",
    "waste_shared",
)
"""Levels: averaged over time. Waste is in tokens of KV space."""
SUMMED = ("duration_s", "iterations", "prefill_tokens", "output_tokens", "preemptions")
AMOUNTS = (*SUMMED, "batch_iterations", "prefill_iterations")
"""Amounts: added up over a point. ``batch_iterations`` is num_running × iterations, ``prefill_iterations`` counts those
with prompt tokens."""
COLUMNS = (
    "time",
    "duration_s",
    "iterations",
    "num_running",
    "num_waiting",
    "num_decodes",
    "prefill_tokens",
    "output_tokens",
    "kv_blocks_used",
    "kv_blocks_cached",
    "preemptions",
    "waste_reserved",
    "waste_internal",
    "waste_external",
    "waste_shared",
)
"""What a row holds, in the order of `StepSeries.append`."""

_INDEX = {name: i for i, name in enumerate(COLUMNS)}
_LEVEL_COLUMNS = [_INDEX[name] for name in LEVELS]
_AMOUNT_COLUMNS = [_INDEX[name] for name in SUMMED]


def no_points() -> Points:
    """None."""
    return {
        "time": np.empty(0),
        "span": np.empty(0),
        "integral": np.empty((0, len(LEVELS))),
        "max": np.empty((0, len(LEVELS))),
        "amount": np.empty((0, len(AMOUNTS))),
    }


def fold(rows: _Floats, ends: _Floats, stride: int) -> Points:
    """Points of *stride* neighbouring rows each; *ends* [n] is when the next row begins."""
    starts = np.arange(0, len(rows), stride)
    if not len(starts):
        return no_points()
    span = ends - rows[:, 0]
    levels = rows[:, _LEVEL_COLUMNS]
    iterations = rows[:, _INDEX["iterations"]]
    batch_iterations = rows[:, _INDEX["num_running"]] * iterations
    prefill_iterations = np.where(rows[:, _INDEX["prefill_tokens"]] > 0, iterations, 0.0)
    amounts = np.column_stack((rows[:, _AMOUNT_COLUMNS], batch_iterations, prefill_iterations))
    return {
        "time": rows[starts, 0],
        "span": np.add.reduceat(span, starts),
        "integral": np.add.reduceat(levels * span[:, None], starts),
        "max": np.maximum.reduceat(levels, starts),
        "amount": np.add.reduceat(amounts, starts),
    }


def pairs(points: Points) -> Points:
    """Every two neighbours merged into one point."""
    starts = np.arange(0, len(points["time"]), 2)
    merged = {name: np.add.reduceat(points[name], starts) for name in ("span", "integral", "amount")}
    return {"time": points["time"][starts], "max": np.maximum.reduceat(points["max"], starts), **merged}


def join(parts: Sequence[Points]) -> Points:
    """One after the other."""
    if not parts:
        return no_points()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
