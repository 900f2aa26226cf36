"""Dates as nanoseconds: ``2023-11-16 18:15:46.6805900``, with ``T`` for the space, without fraction, with a
zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.workload.rows import Rows

__all__ = ["is_date", "read_times"]

DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?)?\s*(Z|UTC|[+-]\d\d:?\d\d)?", re.ASCII
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ALLOWED = "must be a date as 2023-11-16 18:15:46.6805900 between the years 1678 and 2261"


def read_times(rows: Rows, name: str) -> NDArray[np.int64]:
    """ns since 1970, int64[count]; dates without a zone count as UTC."""
    column: Any = rows.columns.get(name)
    if column is not None and not isinstance(column, list) and column.null_count == 0:
        for kind in (pa.timestamp("ns"), pa.timestamp("ns", tz="UTC")):
            try:
                times: NDArray[np.int64] = column.cast(kind).cast(pa.int64()).to_numpy()
            except pa.ArrowException:
                continue
            return times
    return np.array(
        [_nanoseconds(rows, name, row, text) for row, text in enumerate(rows.objects(name))], np.int64
    )


def is_date(value: object) -> bool:
    """Whether *value* looks like such a date."""
    return isinstance(value, str) and DATE.fullmatch(value.strip()) is not None


def _nanoseconds(rows: Rows, name: str, row: int, text: object) -> int:
    match = DATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise rows.error(row, name, text, ALLOWED)
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z", "UTC") else zone
    try:
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}{zone}")
    except ValueError as error:
        raise rows.error(row, name, text, ALLOWED) from error
    if not 1678 <= moment.year <= 2261:
        raise rows.error(row, name, text, ALLOWED)
    return (moment - EPOCH) // timedelta(seconds=1) * 10**9 + int((fraction or "").ljust(9, "0"))
