"""Typed reading of a ``config.json``: every error names the field, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError

__all__ = ["Fields"]


class Fields:
    """The fields of one configuration; *path* is only for messages."""

    def __init__(self, data: Mapping[str, Any], path: object) -> None:
        self.data, self.path = data, path

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of *names* that is present and not null."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if isinstance(value, bool) or not whole or value < least:
                raise self.error(name, f"must be an integer of at least {least}", value)
            return int(value)
        if default is None:
            raise self.error(names[0], "is required for this architecture")
        return default

    def boolean(self, name: str, default: bool) -> bool:
        """A flag; null means the default."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string", value)
        return value

    def strings(self, name: str) -> list[str] | None:
        """A list of strings, or None where the field is absent."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "must be a list of strings", value)
        return value

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, or None where the field is absent."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise self.error(name, "must be a list of integers", value)
        return value

    def section(self, name: str) -> Fields | None:
        """A nested object, or None where it is absent."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, "must be an object", value)
        return Fields(value, self.path)

    def error(self, field: str, allowed: str, value: object = None) -> InputError:
        """The error to raise for *field*."""
        return InputError(self.path, allowed, field=field, value=value)
