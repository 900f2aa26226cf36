"""What GPUs cost to rent: data with a source and a date, never code.

The prices come from ``data/prices.yaml``; a file of one's own may override any of them, ``h100: 2.5`` or
``h100: {usd_per_hour: 2.5, date: 2026-11-01, source: our contract}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hwprofiles import load_profile
from simulator.errors import ConfigurationError, InputError
from simulator.mapping_file import read_mapping

__all__ = ["Prices", "Quote"]


@dataclass(frozen=True)
class Quote:
    """US dollars for one GPU and hour, on demand."""

    usd_per_hour: float
    source: str
    date: str | None = None

    @property
    def text(self) -> str:
        """One line for a reader."""
        return f"${self.usd_per_hour:.2f}/h ({self.source}{f', {self.date}' if self.date else ', undated'})"


@dataclass(frozen=True)
class Prices:
    """Quotes by the name of the device's bundled profile."""

    quotes: Mapping[str, Quote]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prices:
        """The prices of the package, overruled by the file at *path*. Raises `InputError` for what is no price."""
        quotes = dict(_shipped())
        if path is not None:
            quotes |= {
                load_profile(str(name)).device_name: _quote(path, str(name), entry, f"{Path(path).name}")
                for name, entry in read_mapping(path, " from GPU to price").items()
            }
        return cls(quotes)

    def of(self, gpu: str) -> Quote:
        """The quote for profile *gpu*. Raises `ConfigurationError` where there is none."""
        if gpu not in self.quotes:
            raise ConfigurationError(self.missing(gpu))
        return self.quotes[gpu]

    @staticmethod
    def missing(gpu: str) -> str:
        """What to do where profile *gpu* has no price."""
        return f"no price for {gpu}: give one in a file, `{gpu}: 2.50`, with --prices FILE"

    def __contains__(self, gpu: str) -> bool:
        return gpu in self.quotes


@cache
def _shipped() -> Mapping[str, Quote]:
    path = files("simulator.sizing").joinpath("data/prices.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _quote("prices.yaml", name, entry, "") for name, entry in entries.items()}


def _quote(path: str | Path, name: str, entry: Any, source: str) -> Quote:
    fields = entry if isinstance(entry, dict) else {"usd_per_hour": entry}
    if unknown := sorted(set(map(str, fields)) - {"usd_per_hour", "date", "source"}):
        raise InputError(path, "must be one of usd_per_hour, date, source", field=f"{name}.{unknown[0]}")
    price = fields.get("usd_per_hour")
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 < price < math.inf:
        shown = "nothing" if price is None else price
        raise InputError(
            path, "must be a number above 0 and finite, $ per GPU and hour", field=name, value=shown
        )
    date = fields.get("date")
    return Quote(float(price), str(fields.get("source", source)), None if date is None else str(date))
