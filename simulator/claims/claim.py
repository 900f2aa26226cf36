"""A published claim about LLM serving, and what the simulation says to it.

A claim holds what was published, word for word as far as figures go, with its source, the set-up and what nobody
wrote down about it. `run` simulates that set-up and returns our figures, one range for each published one: a range
because what is unknown is swept rather than guessed. Nothing of ours is written down here or anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.claims.lengths import Workloads

__all__ = ["Claim", "Outcome", "Published", "Range", "Verdict", "compare"]

AGREES, CLOSE = 0.05, 0.20
"""Ends of two ranges that differ by no more than these shares of the published one count as agreeing, or as close."""
AGREES_POINTS, CLOSE_POINTS = 1.0, 5.0
"""The same for shares in per cent: points."""


@dataclass(frozen=True)
class Range:
    """From *low* to *high*, both ends included; one value where they are equal."""

    low: float
    high: float

    @classmethod
    def of(cls, *values: float) -> Range:
        """The range that *values* span."""
        return cls(min(values), max(values))

    def text(self, unit: str) -> str:
        """``2.2 - 2.5 x`` in as many digits as the values need."""
        low, high = _digits(self.low), _digits(self.high)
        return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


@dataclass(frozen=True)
class Published:
    """One published figure: a value or a range in *unit* (``×`` or ``%``), for the case *label*.

    *bound* says how it was put: ``up to`` the largest of several cases, ``under`` a ceiling.
    """

    label: str
    low: float
    high: float
    unit: str = "×"
    bound: Literal["", "up to", "under"] = ""

    @property
    def range(self) -> Range:
        """What agrees with it: everything below a ceiling does."""
        return Range(0.0 if self.bound == "under" else self.low, self.high)

    @property
    def text(self) -> str:
        """As it was put."""
        return f"{self.bound} {Range(self.low, self.high).text(self.unit)}".strip()


Verdict = Literal["agrees", "close", "higher", "lower"]


@dataclass(frozen=True)
class Outcome:
    """What came out: a range for each published label, a table of what lies behind it, and computed remarks."""

    ours: Mapping[str, Range]
    table: tuple[tuple[str, ...], ...] = ()
    """Rows of text under it, the first one their heading."""
    remarks: tuple[str, ...] = ()
    lengths: str = ""
    """Where the lengths of the requests came from."""


@dataclass(frozen=True)
class Claim:
    """*why* says what may make ours differ; it is shown where ours does."""

    id: str
    title: str
    source: str
    setup: str
    unknown: str
    why: str
    published: tuple[Published, ...]
    run: Callable[[Workloads], Outcome]


def compare(published: Published, ours: Range) -> Verdict:
    """Whether *ours* meets the published range, comes close to it, or lies above or below it."""
    stated = published.range
    if ours.low <= stated.high and stated.low <= ours.high:
        return "agrees"
    above = ours.low > stated.high
    ends = (ours.low, stated.high) if above else (ours.high, stated.low)
    gap = abs(ends[0] - ends[1]) / (1.0 if published.unit == "%" else ends[1])
    agrees, is_close = (AGREES_POINTS, CLOSE_POINTS) if published.unit == "%" else (AGREES, CLOSE)
    if gap <= is_close:
        return "agrees" if gap <= agrees else "close"
    return "higher" if above else "lower"


def _digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
