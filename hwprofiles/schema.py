"""What a hardware profile holds, in SI units, and where every number of it comes from.

A profile is one YAML file: the *datasheet* (what the vendor promises), *laws* (what kernels reach, fitted to
measurements), *memory* (what is taken before the KV cache gets its share), *host* (what the CPU adds to a
step). A law is four numbers or so per device, operator family and dtype,

    t = t0 + ((F / (ec P))^p + (B / (eb W))^p)^(1/p)

with F FLOPs, B bytes, P peak and W bandwidth of the datasheet; inside its fitted range it may carry a
residual on at most 200 knots.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwprofiles.dtypes import DTYPES
from hwprofiles.law_block import (
    HeldOut,
    Law,
    NotNegative,
    Points,
    Positive,
    Record,
    Residual,
    Source,
    SourceKind,
)

__all__ = [
    "Datasheet",
    "EndToEnd",
    "HardwareProfile",
    "HeldOut",
    "Host",
    "Law",
    "Memory",
    "Points",
    "Price",
    "Residual",
    "ServingCosts",
    "Source",
    "SourceKind",
]


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
    nvlink_bridge: Literal["optional", "fitted"] | None = None
    """NVLink joins two cards by a bridge, which boxes may have or which the card is sold with; none: all of a node."""
    pcie_bandwidth: Positive
    """One direction, B/s."""
    tdp_watts: Positive | None = None
    """None: not known, as of a device that was only measured."""
    num_sms: Annotated[int, Field(gt=0)]
    """Streaming multiprocessors (compute units on AMD, cores of a CPU)."""
    l2_bytes: Positive | None = None
    """None: not known."""
    price: Price | None = None
    source: str
    confidence: str
    notes: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _known_dtypes(self) -> Self:
        if not self.peak_flops:
            raise ValueError("peak_flops: at least one dtype is needed")
        if unknown := sorted(set(self.peak_flops) - set(DTYPES)):
            raise ValueError(f"peak_flops: unknown dtype {unknown[0]!r}")
        return self


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
    per_new_token_s: NotNegative = 0.0
    """The part that grows with the tokens that a step computes, for each of them."""
    launch_s: NotNegative
    """One kernel launched eagerly."""
    graph_launch_s: NotNegative
    """One captured graph replayed."""
    layer_overhead_s: NotNegative
    """Gaps and small kernels of one layer that no operator law covers."""
    source: Source


class EndToEnd(Record):
    """A recorded run of the bundled engine beside its simulation on the profile."""

    system: str
    trace: str
    """What was run, in words."""
    requests: Annotated[int, Field(gt=0)]
    load: Positive | None = None
    """Arrival rate as a share of the engine's own capacity, where that was measured."""
    date: str
    """ISO date of the recording."""
    clock: str
    errors: dict[str, float]
    """Simulated / measured - 1, by ``metric.statistic``."""
    same_decisions: bool
    """Whether, given the recorded step times, every batch was the engine's."""

    def text(self) -> str:
        """One line for a reader."""
        load = "" if self.load is None else f" at {100 * self.load:.0f} % of capacity"
        errors = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in self.errors.items())
        return f"{self.system}{load} ({self.trace}, {self.date}): {errors}"


class ServingCosts(Record):
    """What a serving system in production was seen to add to the laws of this device: `sim calibrate fit-host`."""

    system: str
    """Entry of the traits (`simulator.steptime.load_traits`) that they replace the host costs of."""
    model: str
    num_gpus: Annotated[int, Field(gt=0)] = 1
    """GPUs of one replica."""
    dtype: str
    """Format of the weights."""
    kv_dtype: str
    step_s: NotNegative
    """Host work of a step that the device waits for."""
    seq_s: NotNegative
    """The part that grows with the running sequences, for each of them."""
    token_s: NotNegative = 0.0
    """The part that grows with the new tokens, for each of them."""
    request_s: NotNegative = 0.0
    """Front end and network of a request, before and after the scheduler has it."""
    standard_errors: dict[str, NotNegative] = Field(default={})
    """Of `step_s` and `seq_s`, between stretches of the recording."""
    kv_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens of KV cache that a replica has."""
    kv_source: str = ""
    """Whether the server stated them or they follow from its usage."""
    server: str | None = None
    """Version of the server, as it states it."""
    held_out: dict[str, float] = Field(default={})
    """Predicted / seen - 1 on the last part of the recording, by ``metric.statistic``."""
    spread_step: Positive
    """Standard deviation of ln(seen / predicted) of a request's TPOT on that part."""
    spread_ttft: Positive
    requests: Annotated[int, Field(gt=0)]
    """Requests that were fitted to."""
    digest: str
    """SHA-256 of the recording."""
    source: Source

    def text(self) -> str:
        """One line for a reader."""
        errors = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in self.held_out.items())
        gpus = "1 GPU" if self.num_gpus == 1 else f"{self.num_gpus} GPUs"
        return (
            f"{self.source.text}, {self.model} on {gpus}: {1e3 * self.step_s:.3g} ms a step, "
            f"{1e6 * self.seq_s:.3g} us a sequence; held out: {errors or 'nothing'}"
        )


class HardwareProfile(Record):
    """One device."""

    name: str
    version: Annotated[int, Field(gt=0)] = 1
    """Counts how often the file has been fitted anew."""
    aliases: list[str] = Field(default=[])
    vendor: str
    architecture: str
    device: str | None = None
    """Bundled profile of this very device, where this one was calibrated on it."""
    relative: str | None = None
    """Profile whose laws stand in for families that this one has not measured, scaled by datasheet ratios."""
    datasheet: Datasheet
    memory: Memory
    host: Host
    laws: list[Law] = Field(default=[])
    measured_on: str | None = None
    software: dict[str, str] = Field(default={})
    raw_data_digest: str | None = None
    """SHA-256 over the measurement tables the laws were fitted to."""
    validation: str | None = None
    """Error on whole steps that the fit has not seen, in words."""
    end_to_end: list[EndToEnd] = Field(default=[])
    """Whole runs, held against the engine."""
    serving: list[ServingCosts] = Field(default=[])
    """Systems that were observed in production on this device."""

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
    def l2_bytes(self) -> float | None:
        """Bytes; none where it is not known."""
        return self.datasheet.l2_bytes

    @property
    def has_nvlink(self) -> bool:
        """Whether GPUs reach each other without PCIe."""
        return self.datasheet.nvlink_bandwidth is not None

    @property
    def interconnect(self) -> str:
        """How GPUs of a box reach each other where nobody says: as in `simulator.steptime.interconnect`."""
        if not self.has_nvlink or self.datasheet.nvlink_bridge == "optional":
            return "pcie"
        return "nvlink-bridge" if self.datasheet.nvlink_bridge else "nvlink"

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
    def tdp_watts(self) -> float | None:
        """W; none where it is not known."""
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

    @property
    def device_name(self) -> str:
        """The device by its bundled profile: what prices are quoted for."""
        return self.device or self.name

    def serving_costs(self, system: str, model: str, num_gpus: int) -> ServingCosts | None:
        """What was observed of *system*: with this model and number of GPUs if it was, else the latest."""
        found = [costs for costs in self.serving if costs.system == system]
        return max(
            found,
            key=lambda c: (c.model == model, c.num_gpus == num_gpus, c.source.date or ""),
            default=None,
        )

    def law(self, family: str, dtype: str, variant: str = "") -> Law | None:
        """The law filed under these names, if there is one."""
        for law in self.laws:
            if law.key == (family, dtype, variant):
                return law
        return None
