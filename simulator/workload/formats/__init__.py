"""One importer per file format; the order is that of recognition."""

from __future__ import annotations

from simulator.errors import InputError, UnknownNameError
from simulator.workload.formats import (
    aiperf,
    azure,
    bailian,
    burstgpt,
    canonical,
    guidellm,
    mooncake,
    plain_csv,
    ragpulse,
    sharegpt,
    splitwise,
    timed_trace,
    vidur,
)
from simulator.workload.formats.base import Draft, Format, Options
from simulator.workload.source import Source

__all__ = ["FORMATS", "Draft", "Format", "Options", "find_format"]

IMPORTERS = (
    azure,
    burstgpt,
    vidur,
    splitwise,
    plain_csv,
    sharegpt,
    ragpulse,
    bailian,
    guidellm,
    aiperf,
    mooncake,
    canonical,
    timed_trace,
)

FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in IMPORTERS}
"""Importers by name, in the order in which they are asked whether a file is theirs."""


def find_format(source: Source, name: str | None) -> Format:
    """The importer called *name*, else the first that recognises the file's head."""
    if name is not None:
        if name not in FORMATS:
            raise UnknownNameError("trace format", name, FORMATS)
        return FORMATS[name]
    for candidate in FORMATS.values():
        if candidate.recognises(source.head):
            return candidate
    found = ", ".join(source.head.names[:12])
    raise InputError(
        source.path, f"no trace format has these fields ({found}): say --format or --column", line=1
    )
