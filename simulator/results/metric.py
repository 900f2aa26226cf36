"""What a metric is: a key, a printed label, a unit, a place in the table, a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from simulator.results.distribution import Distribution
from simulator.results.sample import Sample

Number: TypeAlias = float | int | None


@dataclass(frozen=True)
class Metric:
    """A single number of a run."""

    tag: str
    """Key in ``summary.json``."""
    header: str
    """Label in the printed table."""
    unit: str
    order: int
    """Place in the table; 100 and above is the simulator's own block below vLLM's."""
    display: str
    """Format of the value in the table; empty: not printed."""
    compute: Callable[[Sample], Number]
    formula: str


@dataclass(frozen=True)
class LatencyMetric:
    """A time per request (or per token): mean, median, standard deviation and percentiles are reported."""

    tag: str
    """``mean_{tag}_ms``, ``p99_{tag}_ms``, … in ``summary.json``."""
    header: str
    title: str
    """Heading of its block in the printed table."""
    order: int
    compute: Callable[[Sample], Distribution]
    """In seconds."""
    formula: str
    unit: str = "s"
    display_unit: str = "ms"


def formula_of(compute: Callable[[Sample], object]) -> str:
    """The docstring of a metric's function, on one line."""
    return " ".join((compute.__doc__ or "").split())
