"""One importer per file format; the order is that of recognition."""

from __future__ import annotations

from simulator.errors import InputError, UnknownNameError
from simulator.workload.formats import azure, canonical, mooncake
from simulator.workload.formats.base import Draft, Format, Options
from simulator.workload.source import Source

__all__ = ["FORMATS", "Draft", "Format", "Options", "find_format"]

FORMATS = {module.FORMAT.name: module.FORMAT for module in (azure, mooncake, canonical)}


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
