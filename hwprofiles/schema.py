"""What a hardware profile holds, in SI units, and where every number of it comes from.

A profile is one YAML file: the *datasheet* (what the vendor promises), *laws* (what kernels reach, fitted to
measurements), *memory* (what is taken before the KV cache gets its share), *host* (what the CPU adds to a
step). A law is four numbers or so per device, operator family and dtype,

    t = t0 + ((F / (ec P))^p + (B / (eb W))^p)^(1/p)

with F FLOPs, B bytes, P peak and W bandwidth of the datasheet; inside its fitted range it may carry a
residual on at most 200 knots.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwprofiles.dtypes import DTYPES

__all__ = [
    "Datasheet",
    "HardwareProfile",
    "HeldOut",
    "Host",
    "Law",
    "Memory",
    "Price",
    "Residual",
    "Source",
]

MAX_KNOTS = 200
"""Most residual knots one law may carry."""

Family = Literal[
    "gemm",
    "prefill_attention",
    "decode_attention",
    "moe",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "elementwise",
    "sampling",
    "kv_write",
]

SourceKind = Literal["measured", "fitted", "scaled", "datasheet", "default"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


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


class Price(Record):
    """What a device costs to rent."""

    usd_per_hour: Positive
    source: str
    date: str | None = None
    """ISO date of the price; none where the source does not say."""


class Datasheet(Record):
    """What the vendor states, with source and confidence."""

    peak_flops: dict[str, Positive]
    """Dense tensor peak by dtype, FLOP/s (multiply and add counted as two)."""
    memory_bytes: Positive
    """Nominal capacity, bytes."""
    memory_bandwidth: Positive
    """HBM or GDDR bandwidth, B/s."""
    nvlink_bandwidth: Positive | None = None
    """GPU-to-GPU link of one device, one direction, B/s; none where there is no such link."""
    pcie_bandwidth: Positive
    """One direction, B/s."""
    tdp_watts: Positive
    num_sms: Annotated[int, Field(gt=0)]
    """Streaming multiprocessors (compute units on AMD)."""
    l2_bytes: Positive
    price: Price | None = None
    source: str
    confidence: str
    notes: list[str] = []

    @model_validator(mode="after")
    def _known_dtypes(self) -> Self:
        if not self.peak_flops:
            raise ValueError("peak_flops: at least one dtype is needed")
        if unknown := sorted(set(self.peak_flops) - set(DTYPES)):
            raise ValueError(f"peak_flops: unknown dtype {unknown[0]!r}")
        return self


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


class Law(Record):
    """Coefficients of one operator family for one dtype (of the KV cache for attention) or implementation."""

    family: Family
    dtype: str
    variant: str = ""
    """Implementation where several are modelled, e.g. ``nccl`` or ``custom`` for an all-reduce."""
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


class Memory(Record):
    """Memory of one device that is not weights and not KV cache."""

    visible_bytes: Positive
    """Capacity that the driver reports (``torch.cuda`` total_memory)."""
    cuda_context_bytes: NotNegative
    """Context, modules and library handles of one process."""
    activation_factor: NotNegative
    """Peak activation bytes = factor * tokens * hidden_size * 2."""
    graph_pool_bytes: NotNegative
    """Memory pool of captured CUDA graphs."""
    nccl_bytes: NotNegative
    """Communication buffers of one rank, with more than one GPU."""
    source: Source


class Host(Record):
    """What the CPU adds to a step."""

    per_step_s: NotNegative
    """Scheduling, input preparation and output handling of one step."""
    per_seq_s: NotNegative
    """The part that grows with the running sequences, for each of them."""
    launch_s: NotNegative
    """One kernel launched eagerly."""
    graph_launch_s: NotNegative
    """One captured graph replayed."""
    layer_overhead_s: NotNegative
    """Gaps and small kernels of one layer that no operator law covers."""
    source: Source


class HardwareProfile(Record):
    """One device."""

    name: str
    aliases: list[str] = []
    vendor: str
    architecture: str
    relative: str | None = None
    """Profile whose laws stand in for families that this one has not measured, scaled by datasheet ratios."""
    datasheet: Datasheet
    memory: Memory
    host: Host
    laws: list[Law] = []
    measured_on: str | None = None
    software: dict[str, str] = {}
    raw_data_digest: str | None = None
    """SHA-256 over the measurement tables the laws were fitted to."""
    validation: str | None = None

    @model_validator(mode="after")
    def _one_law_per_key(self) -> Self:
        keys = [law.key for law in self.laws]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"laws: {'/'.join(twice[0])} appears twice")
        return self

    @property
    def peak_flops(self) -> dict[str, float]:
        """Dense tensor peak by dtype, FLOP/s."""
        return self.datasheet.peak_flops

    @property
    def memory_bandwidth(self) -> float:
        """B/s."""
        return self.datasheet.memory_bandwidth

    @property
    def memory_bytes(self) -> float:
        """Bytes that the driver reports, a little less than the nominal capacity."""
        return self.memory.visible_bytes

    @property
    def num_sms(self) -> int:
        """Streaming multiprocessors."""
        return self.datasheet.num_sms

    @property
    def l2_bytes(self) -> float:
        """Bytes."""
        return self.datasheet.l2_bytes

    @property
    def has_nvlink(self) -> bool:
        """Whether GPUs reach each other without PCIe."""
        return self.datasheet.nvlink_bandwidth is not None

    @property
    def link_bandwidth(self) -> float:
        """GPU to GPU, one direction, B/s: NVLink where there is one, else PCIe."""
        return self.datasheet.nvlink_bandwidth or self.datasheet.pcie_bandwidth

    @property
    def pcie_bandwidth(self) -> float:
        """One direction, B/s."""
        return self.datasheet.pcie_bandwidth

    @property
    def price_per_hour(self) -> float | None:
        """US dollars per GPU and hour; none where no price was obtained."""
        return None if self.datasheet.price is None else self.datasheet.price.usd_per_hour

    @property
    def tdp_watts(self) -> float:
        """W."""
        return self.datasheet.tdp_watts

    @property
    def provenance(self) -> str:
        """One line: what the laws rest on."""
        counts: dict[str, int] = {}
        for law in self.laws:
            counts[law.source.kind] = counts.get(law.source.kind, 0) + 1
        parts = [f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1])]
        relative = f" (relative: {self.relative})" if self.relative else ""
        return f"laws: {', '.join(parts) or 'none'}{relative}"

    def law(self, family: str, dtype: str, variant: str = "") -> Law | None:
        """The law filed under these names, if there is one."""
        for law in self.laws:
            if law.key == (family, dtype, variant):
                return law
        return None
