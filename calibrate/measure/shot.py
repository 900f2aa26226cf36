"""One thing to measure, and one measured row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Sample", "Shot"]


@dataclass(frozen=True)
class Shot:
    """*shape* are the columns of *table* that name it; *level* 0 is measured before 1 where time is short.

    *flops* and *bytes* are what it does, from which its duration is estimated.
    """

    table: str
    shape: tuple[tuple[str, str | int], ...]
    level: int = 0
    flops: float = 0.0
    bytes: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same shot in another run."""
        return (self.table, *(str(value) for _, value in self.shape))

    def __getitem__(self, name: str) -> Any:
        return dict(self.shape)[name]


@dataclass(frozen=True)
class Sample:
    """What came of a shot: rows of its table, and whether the device's clock had dropped meanwhile."""

    rows: tuple[Mapping[str, Any], ...]
    throttled: bool = False
