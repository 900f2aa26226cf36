"""The law block of a profile: coefficients of one operator family, with source, range and error."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "MAX_POINTS",
    "HeldOut",
    "Law",
    "NotNegative",
    "Points",
    "Positive",
    "Record",
    "Residual",
    "Source",
    "SourceKind",
]

MAX_KNOTS = 200
"""Most residual knots one law may carry."""
MAX_POINTS = 40
"""Most measurements one law may carry along."""

Family = Literal[
    "gemm",
    "prefill_attention",
    "decode_attention",
    "moe",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send_recv",
    "elementwise",
    "sampling",
    "kv_write",
    "swap_out",
    "swap_in",
    "block_copy",
]

SourceKind = Literal["measured", "fitted", "scaled", "datasheet", "default"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """Base of every block: unknown keys are errors, so that a misspelt field cannot pass for a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Record):
    """Where a block's numbers come from."""

    kind: SourceKind
    """Measured on or fitted to data of this device, scaled from another, of the datasheet, or a default."""
    text: str
    """The data set, document or device in words."""
    date: str | None = None
    """ISO date of the source, as far as it is known."""


class Residual(Record):
    """Fitted correction: ln(measured / law) on a grid of log2 coordinates, linear in between."""

    axes: dict[str, list[float]]
    """Name and increasing log2 knots of each axis."""
    values: list[float]
    """ln(measured / law) at the knots, last axis fastest."""
    fade: Positive
    """Octaves outside the grid over which the correction falls to 1/e."""

    @model_validator(mode="after")
    def _grid(self) -> Self:
        size = math.prod(len(knots) for knots in self.axes.values())
        if size != len(self.values):
            raise ValueError(f"residual: {len(self.values)} values for a grid of {size}")
        if size > MAX_KNOTS:
            raise ValueError(f"residual: {size} knots, at most {MAX_KNOTS}")
        for name, knots in self.axes.items():
            if any(b <= a for a, b in pairwise(knots)):
                raise ValueError(f"residual: knots of {name!r} must increase")
        return self


class HeldOut(Record):
    """Error on shapes that the fit did not see, as fractions."""

    mean_ape: NotNegative
    median_ape: NotNegative
    p90_ape: NotNegative
    rows: int
    split: str
    """How the rows were held out, e.g. ``5-fold by (n, k)``."""


class Points(Record):
    """Some of the measurements that a law was fitted to, so that they can be shown beside it."""

    arguments: dict[str, list[float]]
    """What the law is called with, in its order: a value per measurement, or one that all share."""
    seconds: list[Positive]
    """Medians."""

    @model_validator(mode="after")
    def _as_many_of_each(self) -> Self:
        count = len(self.seconds)
        if not 1 <= count <= MAX_POINTS:
            raise ValueError(f"points: {count} measurements, must be 1 to {MAX_POINTS}")
        for name, values in self.arguments.items():
            if len(values) not in (1, count):
                raise ValueError(f"points: {len(values)} values of {name!r} for {count} measurements")
        return self


class Law(Record):
    """Coefficients of one operator family for one dtype (of the KV cache for attention) or implementation."""

    family: Family
    dtype: str
    variant: str = ""
    """Implementation where several are modelled: ``nccl`` or ``custom`` for an all-reduce, ``gathered`` for a swap."""
    form: str
    coefficients: dict[str, float]
    standard_errors: dict[str, NotNegative] = {}
    covariance: list[list[float]] = []
    """Of ln(coefficient), in the order of `coefficients`; empty where not known."""
    residual: Residual | None = None
    spread: NotNegative = 0.0
    """Standard deviation of ln(measured / predicted) on held-out shapes."""
    quantiles: dict[str, float] = {}
    """Quantiles of ln(measured / predicted) on held-out shapes, by probability."""
    range: dict[str, tuple[float, float]] = {}
    """Smallest and largest of each coordinate in the data."""
    held_out: HeldOut | None = None
    points: Points | None = None
    """Of this very device; never carried over to another."""
    source: Source

    @model_validator(mode="after")
    def _physical(self) -> Self:
        for name, value in self.coefficients.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.family}/{self.dtype}: {name} is {value}, must be finite")
            if name.startswith(("ec", "eb", "ea")) and not 0 < value <= 1:
                raise ValueError(f"{self.family}/{self.dtype}: {name} is {value}, must be in (0, 1]")
            if name == "t0" and value < 0:
                raise ValueError(f"{self.family}/{self.dtype}: t0 is {value}, must not be negative")
        return self

    @property
    def key(self) -> tuple[str, str, str]:
        """(family, dtype, variant)."""
        return (self.family, self.dtype, self.variant)
