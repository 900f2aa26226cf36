"""The laws of one device: from operator shapes to seconds.

`LawSet.from_profile` binds the coefficients of a hardware profile to its datasheet. Every method takes
scalars or numpy arrays and returns seconds on one device, never less than peak FLOPs and bandwidth allow. Which
of the numbers are fitted, scaled or assumed is in ``profile.laws``; `LawSet.in_range` says whether a shape
lies in the data a law was fitted to, and `LawSet.draw` gives the same device with every law moved within
its uncertainty.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwprofiles import DTYPES, HardwareProfile, Law, canonical_dtype
from simulator.errors import ConfigurationError
from simulator.steptime.law_attention import DecodeKernel, DecodeLaw, PrefillLaw
from simulator.steptime.law_collective import CUSTOM_LIMIT, CollectiveLaw
from simulator.steptime.law_form import Grid, Number
from simulator.steptime.law_gemm import GemmLaw
from simulator.steptime.law_memory import StreamLaw
from simulator.steptime.law_moe import MoeLaw

__all__ = ["LawSet"]

BETWEEN_LAWS = 0.5
"""Correlation of the errors of two laws of one device: clocks and power move all kernels together. Assumed."""

PEAK_FALLBACK = {"fp4": "bf16", "fp8": "bf16", "int8": "bf16", "bf16": "fp16", "fp16": "bf16"}
"""What a device without this tensor path multiplies in: weight-only kernels convert to bf16, older ones to fp16."""

Key = tuple[str, str, str]


class LawSet:
    """Seconds of every operator of a step on one device.

    >>> laws = LawSet.from_profile(load_profile("h100"))  # doctest: +SKIP
    >>> laws.gemm(16, 4096, 4096, "bf16") * 1e6  # doctest: +SKIP
    """

    def __init__(self, profile: HardwareProfile, scales: dict[Key, float] | None = None) -> None:
        self.profile = profile
        self.bandwidth = profile.memory_bandwidth
        self.link_bandwidth = profile.link_bandwidth
        self._laws = {law.key: law for law in profile.laws}
        self._scales = scales or {}
        self._bound: dict[Key, Any] = {}
        self._decode: dict[tuple[int, int, int, str], DecodeKernel] = {}

    @classmethod
    def from_profile(cls, profile: HardwareProfile) -> LawSet:
        """The laws of *profile*, bound to its datasheet."""
        return cls(profile)

    def peak_flops(self, dtype: str) -> float:
        """Dense peak on which a product in *dtype* runs on this device, FLOP/s."""
        compute = DTYPES[canonical_dtype(dtype)].compute
        peaks = self.profile.peak_flops
        for _ in range(3):
            if compute in peaks:
                return peaks[compute]
            compute = PEAK_FALLBACK[compute]
        raise ConfigurationError(f"{self.profile.name} has no peak for {dtype}")

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> Number:
        """y[m, n] = x[m, k] W: *m* tokens, *n* outputs, *k* inputs; activation quantisation included."""
        return self._get("gemm", dtype)(m, n, k)

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
        """Causal attention of *chunk* new tokens after *context* earlier ones, for *num_seqs* such sequences at once.

        *n_q* query and *n_kv* key-value heads on this device. Includes the write of the new KV.
        """
        return self._get("prefill_attention", kv_dtype)(chunk, context, n_q, n_kv, head_dim, num_seqs)

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
            kernel = self._decode[key] = self._get("decode_attention", kv_dtype).kernel(n_q, n_kv, head_dim)
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
        """Routed experts of one layer for *num_tokens* tokens; *inter* is one expert's whole width, before *tp*."""
        return self._get("moe", dtype)(num_tokens, hidden, inter, topk, num_experts, tp, ep, distribution)

    def all_reduce(self, message: Number, num_gpus: int, variant: str = "auto") -> Number:
        """Sum of *message* bytes over *num_gpus*; ``auto`` is the quicker of NCCL and, up to 8 MiB, the custom kernel."""
        if variant != "auto":
            return self.collective("all_reduce", message, num_gpus, variant)
        nccl = self.collective("all_reduce", message, num_gpus, "nccl")
        custom = self.collective("all_reduce", message, num_gpus, "custom")
        if isinstance(message, np.ndarray):
            return np.where(message <= CUSTOM_LIMIT, np.minimum(custom, nccl), nccl)
        return min(custom, nccl) if message <= CUSTOM_LIMIT else nccl

    def collective(self, op: str, message: Number, num_gpus: int, variant: str = "nccl") -> Number:
        """``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``all_to_all`` of *message* bytes (the whole result)."""
        if num_gpus <= 1:
            return message * 0.0
        return self._get(op, "bf16", variant)(message, num_gpus)

    def elementwise(self, moved: Number) -> Number:
        """A kernel that reads and writes *moved* bytes: norm, rotary embedding, activation, residual."""
        return self._get("elementwise", "bf16")(moved)

    def kv_write(self, tokens: Number, bytes_per_token: float) -> Number:
        """Scatter of new keys and values into their blocks: read once, written once."""
        return self._get("kv_write", "bf16")(2.0 * tokens * bytes_per_token)

    def sampling(self, rows: Number, vocab: int) -> Number:
        """Softmax, filter and draw over *rows* rows of *vocab* fp32 logits."""
        law = self._get("sampling", "fp32")
        return law(4.0 * law.law.coefficients["passes"] * rows * vocab)

    def law(self, family: str, dtype: str, variant: str = "") -> Law:
        """The law in use, with source, range and held-out error; raises `ConfigurationError` if there is none."""
        found = self._laws.get((family, dtype, variant)) or self._laws.get(
            (family, canonical_dtype(dtype), variant)
        )
        if found is None:
            place = "/".join(filter(None, (family, dtype, variant)))
            raise ConfigurationError(f"{self.profile.name} has no law for {place}")
        return found

    def in_range(self, family: str, dtype: str, variant: str = "", **coordinates: float) -> bool:
        """Whether the shape lies in the data the law was fitted to; a law without data has no range: always False."""
        law = self.law(family, dtype, variant)
        if not law.range:
            return False
        return all(
            low <= coordinates[name] <= high for name, (low, high) in law.range.items() if name in coordinates
        )

    def interval(
        self, family: str, dtype: str, probability: float = 0.9, variant: str = ""
    ) -> tuple[float, float]:
        """(low, high) factors around a prediction that cover *probability* of unseen shapes."""
        law = self.law(family, dtype, variant)
        tails = ((1 - probability) / 2, (1 + probability) / 2)
        if law.quantiles:
            levels = sorted((float(level), value) for level, value in law.quantiles.items())
            low, high = np.interp(tails, [level for level, _ in levels], [value for _, value in levels])
            return math.exp(low), math.exp(high)
        width = law.spread * normal_quantile(tails[1])
        return math.exp(-width), math.exp(width)

    def draw(self, rng: np.random.Generator) -> LawSet:
        """The same device with every law moved within its uncertainty.

        ln(scale) of a law is normal with the law's spread on unseen shapes; the errors of two laws correlate by
        `BETWEEN_LAWS`.
        """
        common = rng.standard_normal()
        shared, own = math.sqrt(BETWEEN_LAWS), math.sqrt(1 - BETWEEN_LAWS)
        scales = {
            law.key: math.exp(law.spread * (shared * common + own * rng.standard_normal()))
            for law in self.profile.laws
        }
        return LawSet(self.profile, scales)

    def _get(self, family: str, dtype: str, variant: str = "") -> Any:
        key = (family, dtype, variant)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(self.law(family, dtype, variant))
        return bound

    def _bind(self, law: Law) -> Any:
        scale = self._scales.get(law.key, 1.0)
        grid = None if law.residual is None else Grid(law.residual)
        if law.family in ("elementwise", "kv_write", "sampling"):
            return StreamLaw(law, self.bandwidth, scale)
        if law.family in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            return CollectiveLaw(law, grid, self.link_bandwidth, scale)
        kind = {
            "gemm": GemmLaw,
            "moe": MoeLaw,
            "prefill_attention": PrefillLaw,
            "decode_attention": DecodeLaw,
        }
        return kind[law.family](law, grid, self._law_peak(law), self.bandwidth, scale)

    def _law_peak(self, law: Law) -> float:
        attention = law.family in ("prefill_attention", "decode_attention")
        return self.peak_flops("bf16" if attention else law.dtype)


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
