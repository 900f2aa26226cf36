"""The bytes of a trace file and what its first record says about its format.

Trace files come from elsewhere: with CRLF line ends or without a final newline (Azure), with a trailing blank
line (RAGPulse), as gzip (Azure 2025), with a byte order mark. What cannot be text is refused in one line.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from simulator.errors import ConfigurationError, InputError

__all__ = ["Head", "Source"]

WHITESPACE = " \t\r\n\v\f"
"""What counts as blank in text, as it does in bytes."""

Kind = Literal["csv", "jsonl", "json"]


@dataclass(frozen=True)
class Head:
    """What recognition goes by: the column names of a CSV, or the keys and values of the first JSON
    record."""

    kind: Kind
    names: tuple[str, ...]
    record: dict[str, Any]

    def has(self, *names: str) -> bool:
        """Whether all *names* are there."""
        return all(name in self.names for name in names)


class Source:
    """A file: its content and what it starts with.

    *columns* maps our name of a column to the file's.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self.own_names = {theirs: ours for ours, theirs in (columns or {}).items()}
        if b"\x00" in self.data:
            raise InputError(self.path, "is not a text file (it holds zero bytes)")
        if not self.data or self.data.isspace():
            raise InputError(self.path, "is empty: a trace holds at least one request")

    @cached_property
    def data(self) -> bytes:
        """The content, decompressed, without byte order mark."""
        return _decompressed(self.path, _bytes(self.path)).removeprefix(b"\xef\xbb\xbf")

    def forget(self) -> None:
        """Free the content; it is read again if a complaint needs a line."""
        del self.data

    @cached_property
    def text(self) -> str:
        """The whole file as text; raises `InputError` where it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise InputError(self.path, "must be UTF-8 text", line=line) from error

    def lines(self) -> list[tuple[int, str]]:
        """Line numbers, from 1, and text of the lines that are not blank."""
        lines = self.text.replace("\r\n", "\n").split("\n")
        return [(number, line) for number, line in enumerate(lines, 1) if line.strip(WHITESPACE)]

    def line_of(self, row: int) -> int:
        """The line number of the *row*-th line that is not blank."""
        filled = (number for number, line in enumerate(self.data.split(b"\n"), 1) if line.strip())
        return next(itertools.islice(filled, row, None))

    def renamed(self, name: str) -> str:
        """Our name for the file's column *name*."""
        return self.own_names.get(name, name)

    @cached_property
    def head(self) -> Head:
        """What the file starts with, under our names."""
        head = self.raw_head
        absent = [name for name in self.own_names if name not in head.names]
        if absent:
            found = ", ".join(head.names[:12])
            raise ConfigurationError(f"column {absent[0]!r}: {self.path} has no such column, only {found}")
        return Head(head.kind, tuple(map(self.renamed, head.names)), head.record)

    @cached_property
    def raw_head(self) -> Head:
        """What the file starts with."""
        number, first = self._first_line()
        if first.startswith("["):
            return self._json_head(self.document())
        if not first.startswith("{"):
            names = tuple(name.strip().strip('"') for name in first.split(","))
            return Head("csv", names, {})
        record = parse_object(self.path, number, first)
        return Head("jsonl", tuple(record), record)

    def document(self) -> list[Any]:
        """The file as one JSON array."""
        try:
            document = json.loads(self.text)
        except (json.JSONDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise InputError(
                self.path, f"broken JSON: {getattr(error, 'msg', 'nested too deeply')}", line=line
            ) from error
        except ValueError as error:  # an integer of more digits than Python converts
            raise InputError(self.path, f"broken JSON: {error}") from error
        if not isinstance(document, list) or not document:
            raise InputError(self.path, "must be an array of at least one record")
        return document

    def _first_line(self) -> tuple[int, str]:
        """Number and text of the first line that is not blank."""
        begin = next(re.finditer(rb"\S", self.data)).start()
        end = self.data.find(b"\n", begin)
        number = self.data.count(b"\n", 0, begin) + 1
        try:
            return number, self.data[begin : len(self.data) if end < 0 else end].decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(self.path, "must be UTF-8 text", line=number) from error

    def _json_head(self, document: list[Any]) -> Head:
        record = document[0]
        if not isinstance(record, dict):
            raise InputError(self.path, "must be an array of objects", field="[0]", value=record)
        return Head("json", tuple(record), record)


def parse_object(path: Path, line: int, text: str) -> dict[str, Any]:
    """One line of JSON as a dict."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            path, f"broken JSON: {error.msg} at column {error.colno} (each line must be a record)", line=line
        ) from error
    except RecursionError as error:
        raise InputError(path, "broken JSON: nested too deeply", line=line) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise InputError(path, f"broken JSON: {error}", line=line) from error
    if not isinstance(record, dict):
        raise InputError(path, "must be a JSON object", line=line, value=record)
    return record


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(path, "no such file") from error
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise InputError(path, f"cannot be read: {error}") from error


def _decompressed(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, f"broken gzip: {error}") from error
