"""Single values of a file: what they stand for, or None if they are not allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.content import OUTPUT_ID_BASE

__all__ = ["all_within", "as_ids", "as_number", "as_text", "as_whole"]


def all_within(values: NDArray[Any], least: int, most: int) -> bool:
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu" or bool((values == np.floor(values)).all())
    return bool(low >= least and high <= most and whole)


def as_whole(value: Any, least: int, most: int) -> int | None:
    number = as_number(value, least)
    return int(number) if number is not None and number <= most and number == int(number) else None


def as_number(value: Any, least: float) -> int | float | None:
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) <= 1e300 and value >= least else None


def _parsed(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def as_text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return str(value) if hasattr(value, "isoformat") else None
    return str(value)


def as_ids(value: Any) -> list[int] | None:
    if not isinstance(value, list):
        return None
    good = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < OUTPUT_ID_BASE for i in value)
    return value if good else None
