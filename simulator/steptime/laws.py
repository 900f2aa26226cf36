"""The laws of one device: from operator shapes to seconds.

`LawSet.from_profile` binds the coefficients of a hardware profile to its datasheet. Every method takes
scalars or numpy arrays and returns seconds on one device, never less than peak FLOPs and bandwidth allow.
Which of the numbers are fitted, scaled or assumed is in ``profile.laws``; `LawSet.in_range` says whether a
shape lies in the data a law was fitted to, `LawSet.interval` how far off it may be, and `LawSet.draw` gives
the same device with every law moved within its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles import DTYPES, HardwareProfile, Law, canonical_dtype
from simulator.errors import ConfigurationError
from simulator.steptime.interconnect import Interconnect, host_rate
from simulator.steptime.law_collective import CUSTOM_LIMIT, CollectiveLaw, SendLaw
from simulator.steptime.law_decode import DecodeKernel, DecodeLaw
from simulator.steptime.law_draw import draw_laws, interval_factors
from simulator.steptime.law_form import Device, Grid, Number, OperatorLaw
from simulator.steptime.law_gemm import GemmLaw
from simulator.steptime.law_memory import StreamLaw
from simulator.steptime.law_moe import MoeLaw, touched_experts
from simulator.steptime.law_move import MoveLaw
from simulator.steptime.law_prefill import PrefillLaw

__all__ = ["FAMILY_LAWS", "LawSet", "bind", "law_device"]

Key = tuple[str, str, str]

FAMILY_LAWS: dict[str, type[OperatorLaw]] = {
    "gemm": GemmLaw,
    "prefill_attention": PrefillLaw,
    "decode_attention": DecodeLaw,
    "moe": MoeLaw,
    "all_reduce": CollectiveLaw,
    "all_gather": CollectiveLaw,
    "reduce_scatter": CollectiveLaw,
    "all_to_all": CollectiveLaw,
    "send_recv": SendLaw,
    "elementwise": StreamLaw,
    "kv_write": StreamLaw,
    "sampling": StreamLaw,
    "swap_out": MoveLaw,
    "swap_in": MoveLaw,
    "block_copy": MoveLaw,
}

PEAK_FALLBACK = {"fp4": "bf16", "fp8": "bf16", "int8": "bf16", "bf16": "fp16", "fp16": "bf16"}
"""What a device without a tensor path multiplies in: weight-only kernels convert to bf16, older ones to
fp16."""


PCIE = "pcie"
"""Variant of a collective's law for a ring over PCIe."""


def peak_flops(profile: HardwareProfile, dtype: str) -> float:
    """Dense peak on which a product in *dtype* runs on the device, FLOP/s."""
    compute = DTYPES[canonical_dtype(dtype)].compute
    for _ in range(3):
        if compute in profile.peak_flops:
            return profile.peak_flops[compute]
        compute = PEAK_FALLBACK[compute]
    raise ConfigurationError(f"{profile.name} has no peak for {dtype}")


def law_device(profile: HardwareProfile, family: str, dtype: str, variant: str = "") -> Device:
    """The datasheet as a law of *family*, *dtype* and *variant* sees it; attention multiplies in bf16 whatever the
    cache."""
    compute = dtype if family in ("gemm", "moe") else "bf16"
    crossed = {
        "swap_out": profile.pcie_bandwidth,
        "swap_in": profile.pcie_bandwidth,
        "block_copy": profile.memory_bandwidth,
    }
    return Device(
        peak=peak_flops(profile, compute),
        bandwidth=profile.memory_bandwidth,
        link=host_rate(profile) if variant == PCIE else crossed.get(family, profile.link_bandwidth),
        num_sms=profile.num_sms,
        l2=profile.l2_bytes or 0.0,
    )


def bind(profile: HardwareProfile, law: Law, scale: float = 1.0) -> OperatorLaw:
    """*law* on the datasheet of *profile*, ready to be called."""
    collective = FAMILY_LAWS[law.family] is CollectiveLaw
    return FAMILY_LAWS[law.family](
        law.coefficients,
        law.family if collective else law.dtype,
        law_device(profile, law.family, law.dtype, law.variant),
        None if law.residual is None else Grid(law.residual),
        scale,
    )


class LawSet:
    """Seconds of every operator of a step on one device.

    >>> from hwprofiles import load_profile
    >>> laws = LawSet.from_profile(load_profile("h100"))
    >>> laws.gemm(16, 4096, 4096, "bf16") > 4096 * 4096 * 2 / 3.35e12
    True
    """

    def __init__(
        self,
        profile: HardwareProfile,
        scales: dict[Key, float] | None = None,
        interconnect: Interconnect | None = None,
    ) -> None:
        self.profile = profile
        self.interconnect = interconnect or Interconnect(profile.interconnect)
        self.bandwidth = profile.memory_bandwidth
        """Memory, B/s."""
        self.link_bandwidth = self.interconnect.link_bandwidth(profile)
        """GPU to GPU, one direction, B/s."""
        self._laws = {law.key: law for law in profile.laws}
        self._scales = scales or {}
        self._bound: dict[Key, Any] = {}
        self._decode: dict[tuple[int, int, int, str], DecodeKernel] = {}

    def __eq__(self, other: object) -> bool:
        """Whether *other* gives the same seconds: laws of an equal profile in an equal box, scaled alike."""
        if not isinstance(other, LawSet):
            return NotImplemented
        alike = self._scales == other._scales and self.interconnect == other.interconnect
        return alike and (self.profile is other.profile or self.profile == other.profile)

    def __hash__(self) -> int:
        return hash(self.profile.name)

    @classmethod
    def from_profile(cls, profile: HardwareProfile, interconnect: Interconnect | None = None) -> LawSet:
        """The laws of *profile*, bound to its datasheet, in a box with *interconnect* (else the card's own)."""
        return cls(profile, None, interconnect)

    def peak_flops(self, dtype: str) -> float:
        """Dense peak on which a product in *dtype* runs on this device, FLOP/s."""
        return peak_flops(self.profile, dtype)

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> Number:
        """y[m, n] = x[m, k] W: *m* tokens, *n* outputs, *k* inputs; activation quantisation included."""
        return self.bound("gemm", dtype)(m, n, k)

    def prefill_attention(
        self,
        chunk: Number,
        context: Number,
        n_q: int,
        n_kv: int,
        head_dim: int,
        kv_dtype: str,
        num_seqs: Number = 1,
    ) -> Number:
        """Causal attention of *chunk* new tokens after *context* earlier ones, *num_seqs* such sequences at
        once.

        *n_q* query and *n_kv* key-value heads on this device. Includes the write of the new KV.
        """
        return self.bound("prefill_attention", kv_dtype)(chunk, context, n_q, n_kv, head_dim, num_seqs)

    def prefill_attention_varlen(
        self,
        chunks: Sequence[float] | NDArray[Any],
        contexts: Sequence[float] | NDArray[Any],
        n_q: int,
        n_kv: int,
        head_dim: int,
        kv_dtype: str,
    ) -> float:
        """One launch over sequences of different chunks and contexts."""
        law: PrefillLaw = self.bound("prefill_attention", kv_dtype)
        return law.varlen(np.asarray(chunks), np.asarray(contexts), n_q, n_kv, head_dim)

    def decode_attention(
        self,
        num_seqs: Number,
        sum_context: Number,
        n_q: int,
        n_kv: int,
        head_dim: int,
        kv_dtype: str,
        max_context: Number = 0.0,
    ) -> Number:
        """One new token of each of *num_seqs* sequences whose contexts sum to *sum_context* tokens."""
        return self.decode_kernel(n_q, n_kv, head_dim, kv_dtype)(num_seqs, sum_context, max_context)

    def decode_kernel(self, n_q: int, n_kv: int, head_dim: int, kv_dtype: str) -> DecodeKernel:
        """Decode attention with the heads fixed, cheaper to call again and again."""
        key = (n_q, n_kv, head_dim, kv_dtype)
        kernel = self._decode.get(key)
        if kernel is None:
            law: DecodeLaw = self.bound("decode_attention", kv_dtype)
            kernel = self._decode[key] = law.kernel(n_q, n_kv, head_dim)
        return kernel

    def moe(
        self,
        num_tokens: Number,
        hidden: int,
        inter: int,
        topk: int,
        num_experts: int,
        tp: int,
        ep: int,
        dtype: str,
        distribution: str = "balanced",
    ) -> Number:
        """Routed experts of one layer for *num_tokens* tokens; *inter* is one expert's whole width, before
        *tp*.

        *distribution*: ``balanced``, ``uniform`` or ``power_law_<a>``.
        """
        experts = touched_experts(num_tokens, topk, num_experts, distribution)
        law = self.bound("moe", dtype)
        return law(num_tokens, hidden, inter, topk, num_experts, tp, ep, experts)

    def all_reduce(self, message: Number, num_gpus: int, variant: str = "auto") -> Number:
        """Sum of *message* bytes over *num_gpus*; ``auto``: what the box has, over NVLink the quicker of NCCL and
        (up to 8 MiB) custom.
        """
        reducers = self.reducers(num_gpus) if variant == "auto" else (variant,)
        nccl = self.collective("all_reduce", message, num_gpus, reducers[0])
        if len(reducers) == 1:
            return nccl
        custom = self.collective("all_reduce", message, num_gpus, "custom")
        if isinstance(message, np.ndarray):
            return np.where(message <= CUSTOM_LIMIT, np.minimum(custom, nccl), nccl)
        return min(custom, nccl) if message <= CUSTOM_LIMIT else nccl

    def collective(self, op: str, message: Number, num_gpus: int, variant: str = "auto") -> Number:
        """``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all`` of *message* bytes (whole
        result); ``auto``: NCCL over what the box has."""
        if num_gpus <= 1:
            return message * 0.0
        return self.bound(op, "bf16", self.ring(num_gpus) if variant == "auto" else variant)(
            message, num_gpus
        )

    def _place(self, law: Law, found: OperatorLaw) -> None:
        """Give *found* the links of this box, where *law* is not of a box of its own."""
        ring = self.interconnect.ring_bandwidth
        if isinstance(found, CollectiveLaw) and law.variant == PCIE and ring:
            found.as_stated(ring)
        if law.family == "send_recv" and law.source.kind == "default":
            found.device = replace(found.device, link=self.link_bandwidth)

    def ring(self, num_gpus: int) -> str:
        """Variant of the law of NCCL between *num_gpus* of this box: its own where it was measured."""
        return PCIE if self.interconnect.over_pcie(num_gpus) and not self._own_box else "nccl"

    def reducers(self, num_gpus: int) -> tuple[str, ...]:
        """Variants of the all-reduces that an engine chooses from; vLLM's custom one wants NVLink.

        A custom kernel that is only assumed does not stand beside an NCCL that was measured.
        """
        custom = self._custom_counts and not self.interconnect.over_pcie(num_gpus)
        return (self.ring(num_gpus), "custom") if custom else (self.ring(num_gpus),)

    @cached_property
    def _own_box(self) -> bool:
        """Whether collectives were measured on the box that is asked for, and not on another with such cards."""
        measured = self.law("all_reduce", "bf16", "nccl").source.kind == "measured"
        return measured and not self.interconnect.stated

    @cached_property
    def _custom_counts(self) -> bool:
        custom, nccl = (self.law("all_reduce", "bf16", variant).source.kind for variant in ("custom", "nccl"))
        return custom != "default" or nccl == "default"

    def send_recv(self, message: Number) -> Number:
        """*message* bytes from one GPU to another, as between two stages of a pipeline."""
        return self.bound("send_recv", "bf16")(message)

    def elementwise(self, moved: Number) -> Number:
        """A kernel that reads and writes *moved* bytes: norm, rotary embedding, activation, residual."""
        return self.bound("elementwise", "bf16")(moved)

    def kv_write(self, tokens: Number, bytes_per_token: float) -> Number:
        """Scatter of new keys and values into their blocks: read once, written once."""
        return self.bound("kv_write", "bf16")(2.0 * tokens * bytes_per_token)

    def sampling(self, rows: Number, vocab: int) -> Number:
        """Softmax, filter and draw over *rows* rows of *vocab* fp32 logits."""
        law = self.bound("sampling", "fp32")
        return law(4.0 * law.coefficients["passes"] * rows * vocab)

    def move(self, op: str, moved: Number, copies: Number, variant: str = "") -> Number:
        """``swap_out``, ``swap_in`` or ``block_copy`` of *moved* bytes in *copies* pieces; *variant* ``gathered``:
        collected on the device first. A copy on the device reads and writes: twice the bytes of the blocks.
        """
        return self.bound(op, "bf16", variant)(moved, copies)

    def law(self, family: str, dtype: str, variant: str = "") -> Law:
        """The law in use, with source, range and held-out error; `ConfigurationError` if there is none."""
        found = self._laws.get((family, dtype, variant))
        if found is None and dtype not in DTYPES:
            found = self._laws.get((family, canonical_dtype(dtype), variant))
        if found is None:
            place = "/".join(filter(None, (family, dtype, variant)))
            raise ConfigurationError(f"{self.profile.name} has no law for {place}")
        return found

    def in_range(self, family: str, dtype: str, variant: str = "", **coordinates: float) -> bool:
        """Whether the shape lies in the data the law was fitted to; False for a law without data."""
        law = self.law(family, dtype, variant)
        inside = (
            low <= coordinates[name] <= high for name, (low, high) in law.range.items() if name in coordinates
        )
        return bool(law.range) and all(inside)

    def interval(
        self, family: str, dtype: str, probability: float = 0.9, variant: str = ""
    ) -> tuple[float, float]:
        """(low, high) factors around a prediction that cover *probability* of unseen shapes."""
        return interval_factors(self.law(family, dtype, variant), probability)

    def draw(self, rng: np.random.Generator) -> LawSet:
        """The same device with every law moved within its uncertainty; see `law_draw`."""
        laws, scales = draw_laws(self.profile.laws, rng)
        return LawSet(self.profile.model_copy(update={"laws": laws}), scales, self.interconnect)

    def bound(self, family: str, dtype: str, variant: str = "") -> Any:
        """The law of these names on this device, a callable `OperatorLaw`."""
        key = (family, dtype, variant)
        found = self._bound.get(key)
        if found is None:
            law = self.law(family, dtype, variant)
            found = self._bound[key] = bind(self.profile, law, self._scales.get(law.key, 1.0))
            self._place(law, found)
        return found
