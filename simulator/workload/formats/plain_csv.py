"""Plain CSV with the canonical column names, or with its own names and a `--column` for each.

`input_length`, `output_length` and, unless arrivals are stated otherwise, `timestamp`: dates, or numbers
whose unit must be said with `--time-unit`.
"""

from __future__ import annotations

import pyarrow as pa

from simulator.workload.formats.base import Draft, Format, Options, time_unit
from simulator.workload.formats.canonical import optional_columns
from simulator.workload.formats.clock import is_date, read_times
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return head.kind == "csv" and head.has("input_length", "output_length")


def read(rows: Rows, options: Options) -> Draft:
    """Lengths, arrivals and the optional columns that are there."""
    draft = Draft(rows.integers("input_length", least=1), rows.integers("output_length", least=0))
    draft.columns = optional_columns(rows)
    if not rows.has("timestamp"):
        return draft
    if has_dates(rows):
        draft.time, draft.unit = read_times(rows, "timestamp"), "ns"
    else:
        draft.time = rows.numbers("timestamp")
        draft.unit = time_unit(rows, options, None, "a plain CSV says nothing about it")
    return draft


def has_dates(rows: Rows) -> bool:
    """Whether the first time stamp is a date."""
    column = rows.columns["timestamp"]
    if isinstance(column, list) or not pa.types.is_timestamp(column.type):
        return is_date(column[0] if isinstance(column, list) else column[0].as_py())
    return True


FORMAT = Format("csv", "plain CSV with named columns", recognises, read)
