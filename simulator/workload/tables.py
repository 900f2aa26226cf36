"""Files through pyarrow, which reads a million lines in seconds."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from simulator.workload.source import Source

__all__ = ["csv_table", "json_table"]

CHUNK = 1 << 22
"""Bytes that pyarrow parses at once; a file with a longer line takes the careful path."""


def json_table(source: Source) -> Any:
    """The JSON lines as a pyarrow table; None where its rows are not the file's lines."""
    fields = [
        pa.field(name, _json_type(value)) for name, value in source.head.record.items() if _json_type(value)
    ]
    table = pyarrow.json.read_json(
        pa.BufferReader(source.data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=CHUNK),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields) if fields else None),
    )
    return table if _is_complete(source.data, table.num_rows) else None


def _json_type(value: object) -> Any:
    """The type to hold a column to; numbers are left to inference, which allows whole and fractional ones to
    mix."""
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list) and all(type(item) is int for item in value):
        return pa.list_(pa.int64())
    return None


def csv_table(source: Source) -> Any:
    names = source.raw_head.names
    if len(set(names)) < len(names):
        return None
    text = {name: pa.string() for name in names if name == "TIMESTAMP" or name.lower().endswith("id")}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(source.data.lstrip()),
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=CHUNK),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=text, null_values=[""], strings_can_be_null=True
        ),
    )
    table = table.rename_columns([str(name).strip() for name in table.column_names])
    return table if _is_complete(source.data, table.num_rows + 1) else None


def _is_complete(data: bytes, n_rows: int) -> bool:
    """Whether a table of *n_rows* has one row for each line that is not blank."""
    if n_rows == data.count(b"\n") + (not data.endswith(b"\n")):
        return True
    return n_rows == sum(1 for line in data.split(b"\n") if line.strip())
