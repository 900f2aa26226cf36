"""Columns of a file as numpy arrays, every value checked, every complaint with its line.

Files go through pyarrow, which reads a million lines in seconds. What it refuses (broken JSON, a column of
mixed types) is read again line by line in Python, which finds the line to name; the checks are the same for
both.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload.columns import MAX_LENGTH, Categorical
from simulator.workload.content import OUTPUT_ID_BASE
from simulator.workload.source import Source, parse_object
from simulator.workload.tables import csv_table, json_table
from simulator.workload.values import all_within, as_ids, as_number, as_text, as_whole

__all__ = ["Rows"]

MISSING: Any = None


class Rows:
    """A file's records by column; `columns` maps a name to a pyarrow array or, from the careful path, a
    list."""

    def __init__(
        self, source: Source, columns: dict[str, Any], count: int, lines: Sequence[int] | None
    ) -> None:
        self.source, self.path = source, source.path
        self.columns = {source.renamed(name): column for name, column in columns.items()}
        self.count, self._lines = count, lines
        if count == 0:
            raise InputError(self.path, "is empty: a trace holds at least one request")

    @classmethod
    def of(cls, source: Source) -> Rows:
        """Read *source* by its kind."""
        kind = source.head.kind
        if kind == "json":
            return cls._of_records(source, source.document(), None)
        fast, careful = (csv_table, cls._careful_csv) if kind == "csv" else (json_table, cls._careful_json)
        try:
            table = fast(source)
        except (pa.ArrowException, UnicodeDecodeError):
            return careful(source)
        if table is None:
            return careful(source)
        count, columns = table.num_rows, {str(name): table.column(name) for name in table.column_names}
        del table  # so that each column's chunks are freed once they are combined
        for name in columns:
            columns[name] = columns[name].combine_chunks()
        source.forget()
        return cls(source, columns, count, None)

    @classmethod
    def _careful_json(cls, source: Source) -> Rows:
        lines = source.lines()
        records = [parse_object(source.path, number, line) for number, line in lines]
        return cls._of_records(source, records, [number for number, _ in lines])

    @classmethod
    def _of_records(cls, source: Source, records: list[Any], lines: list[int] | None) -> Rows:
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise InputError(source.path, "must be an object", field=f"[{index}]", value=record)
        names = list(dict.fromkeys(name for record in records for name in record))
        columns = {name: [record.get(name, MISSING) for record in records] for name in names}
        return cls(source, columns, len(records), lines)

    @classmethod
    def _careful_csv(cls, source: Source) -> Rows:
        lines = source.lines()
        try:
            table = [next(csv.reader([line])) for _, line in lines]
        except csv.Error as error:
            raise InputError(source.path, f"broken CSV: {error}") from error
        names = [name.strip() for name in table[0]]
        if len(set(names)) < len(names):
            raise InputError(source.path, "column names must differ", line=lines[0][0], value=",".join(names))
        for (number, line), cells in zip(lines, table):
            if len(cells) != len(names):
                allowed = f"must have {len(names)} fields as the header has, not {len(cells)}"
                raise InputError(source.path, allowed, line=number, value=line)
        cells_by_name = dict(zip(names, zip(*table[1:]))) if len(table) > 1 else {}
        columns = {name: [cell or MISSING for cell in cells] for name, cells in cells_by_name.items()}
        return cls(source, columns, len(table) - 1, [number for number, _ in lines[1:]])

    def has(self, name: str) -> bool:
        """Whether any record has *name*."""
        return name in self.columns

    def error(self, row: int, field: str, value: object, allowed: str) -> InputError:
        """A complaint about one value."""
        if self.source.head.kind == "json":
            return InputError(self.path, allowed, field=f"[{row}].{field}", value=value)
        if self._lines is not None:
            line = self._lines[row]
        else:
            line = self.source.line_of(row + (self.source.head.kind == "csv"))
        if value is None:
            return InputError(self.path, f"missing: {allowed}", line=line, field=field)
        return InputError(self.path, allowed, line=line, field=field, value=value)

    def objects(self, name: str) -> list[Any]:
        """The values as Python objects, None where missing."""
        if name not in self.columns:
            return [None] * self.count
        column = self.columns[name]
        return column if isinstance(column, list) else list(column.to_pylist())

    def integers(
        self, name: str, *, least: int, most: int = MAX_LENGTH, default: int | None = None
    ) -> NDArray[np.int64]:
        """int64[count] within [least, most]; *default* where missing, else missing is an error."""
        allowed = f"must be a whole number from {least} to {most}"
        if name not in self.columns and default is not None:
            return np.full(self.count, default, np.int64)
        fast = self._typed(name, default)
        if fast is not None and all_within(fast, least, most):
            return fast.astype(np.int64)
        return np.array(
            self._each(name, allowed, default, lambda value: as_whole(value, least, most)), np.int64
        )

    def numbers(
        self, name: str, *, least: float = -math.inf, default: float | None = None
    ) -> NDArray[np.float64] | NDArray[np.int64]:
        """Finite numbers of at least *least*: int64 where the file has whole numbers only, else float64."""
        bound = "must be a finite number" + ("" if least == -math.inf else f" of at least {least:g}")
        if name not in self.columns and default is not None:
            return np.full(self.count, default)
        fast = self._typed(name, default)
        if fast is not None:
            finite = np.isfinite(fast) if default is None or not math.isnan(default) else ~np.isinf(fast)
            if bool(finite.all()) and not bool((fast < least).any()):
                return fast
        values = self._each(name, bound, default, lambda value: as_number(value, least))
        if all(isinstance(value, int) and abs(value) < 1 << 63 for value in values):
            return np.array(values, np.int64)
        return np.array(values, np.float64)

    def names(self, name: str) -> Categorical:
        """Names (numbers as their text), with None where missing."""
        if name not in self.columns:
            return Categorical.none(self.count)
        column = self.columns[name]
        if not isinstance(column, list) and (
            pa.types.is_string(column.type) or pa.types.is_integer(column.type)
        ):
            encoded = column.dictionary_encode()
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            return Categorical(codes, tuple(str(value) for value in encoded.dictionary.to_pylist()))
        return Categorical.of(self.texts(name))

    def texts(self, name: str) -> list[str | None]:
        """Texts (numbers as their text), None where missing."""
        column = self.columns.get(name)
        if column is not None and not isinstance(column, list) and pa.types.is_string(column.type):
            return list(column.to_pylist())
        values: list[str] = self._each(name, "must be text", "", as_text)
        return [value or None for value in values]

    def lists(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lists of ids from 0 as CSR (offsets int64[count + 1], values); missing counts as empty."""
        column = self.columns.get(name)
        if column is not None and not isinstance(column, list) and pa.types.is_list(column.type):
            values = column.flatten()
            if pa.types.is_integer(values.type) and values.null_count == 0:
                flat = values.to_numpy(zero_copy_only=False).astype(np.int64)
                if len(flat) == 0 or (int(flat.min()) >= 0 and int(flat.max()) < OUTPUT_ID_BASE):
                    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))), flat
        lists = (
            self._each(name, "must be a list of whole numbers from 0", [], as_ids) if self.has(name) else []
        )
        lengths = np.array([len(ids) for ids in lists] or [0] * self.count, np.int64)
        flat = np.array([i for ids in lists for i in ids], np.int64)
        return np.concatenate(([0], np.cumsum(lengths))), flat

    def _typed(self, name: str, default: float | None) -> NDArray[Any] | None:
        """The column as a numeric array, or None if it must be looked at value by value."""
        column = self.columns.get(name)
        if column is None or isinstance(column, list):
            return None
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return None
        if column.null_count:
            if default is None:
                return None
            column = column.cast(pa.float64()) if math.isnan(default) else column
            column = column.fill_null(pa.scalar(default, column.type))
        array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return array

    def _each(self, name: str, allowed: str, default: Any, convert: Callable[[Any], Any]) -> list[Any]:
        """Every value converted; the first that cannot be is the error."""
        result = []
        for row, value in enumerate(self.objects(name)):
            if value is None and default is not None:
                result.append(default)
                continue
            converted = None if value is None else convert(value)
            if converted is None:
                raise self.error(row, name, value, allowed)
            result.append(converted)
        return result
