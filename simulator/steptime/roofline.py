"""The ideal device: every operator at peak FLOPs or peak bandwidth, whichever takes longer, and no launch.

The roofline (Williams, Waterman and Patterson 2009) bounds every real kernel from below, so it is both the
*ideal* column of an estimate and the floor under all fitted laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles import DTYPES, canonical_dtype
from simulator.steptime.protocol import Laws, Number

__all__ = ["RooflineLaws"]


@dataclass(frozen=True)
class RooflineLaws:
    """Laws at the peaks of *device* (any object with ``peak_flops(dtype)``, bandwidth and link bandwidth)."""

    device: Laws

    @property
    def bandwidth(self) -> float:
        """B/s."""
        return self.device.bandwidth

    @property
    def link_bandwidth(self) -> float:
        """B/s, one direction."""
        return self.device.link_bandwidth

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s."""
        return self.device.peak_flops(dtype)

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> Number:
        """2mnk FLOPs against weights, inputs and 16-bit outputs moved once."""
        kind = DTYPES[canonical_dtype(dtype)]
        moved = kind.weight_bytes * n * k + kind.activation_bytes * m * k + 2.0 * m * n
        return self._longer(2.0 * m * n * k, moved, dtype)

    def prefill_attention(
        self, chunk: Number, context: Number, n_q: Any, n_kv: Any, head_dim: Any, kv_dtype: str
    ) -> Number:
        """4·n_q·d FLOPs per (query, key) pair; queries, outputs and all keys and values moved once."""
        flops = 4.0 * n_q * head_dim * chunk * (context + (chunk + 1.0) / 2.0)
        moved = 4.0 * n_q * head_dim * chunk + _kv_bytes(n_kv, head_dim, kv_dtype) * (chunk + context)
        return self._longer(flops, moved, "bf16")

    def decode_attention(
        self, num_seqs: Number, sum_context: Number, n_q: Any, n_kv: Any, head_dim: Any, kv_dtype: str
    ) -> Number:
        """4·n_q·d FLOPs per attended token; all keys and values moved once."""
        moved = _kv_bytes(n_kv, head_dim, kv_dtype) * sum_context
        return self._longer(4.0 * n_q * head_dim * sum_context, moved, "bf16") + 0.0 * num_seqs

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
    ) -> Number:
        """Three matrices per expert; as many experts are read as tokens can reach when spread evenly."""
        matrix, choices = 3.0 * hidden * inter / tp, num_tokens * topk
        weights = DTYPES[canonical_dtype(dtype)].weight_bytes * matrix * np.minimum(choices, num_experts) / ep
        return self._longer(2.0 * matrix * choices / ep, weights + 4.0 * num_tokens * hidden, dtype)

    def all_reduce(self, message: Number, num_gpus: int) -> Number:
        """A ring sends 2(n-1)/n of the message per GPU."""
        return 2.0 * (num_gpus - 1) / num_gpus * message / self.link_bandwidth

    def collective(self, op: str, message: Number, num_gpus: int) -> Number:
        """Every GPU sends (n-1)/n of the message."""
        return (num_gpus - 1) / num_gpus * message / self.link_bandwidth

    def send_recv(self, message: Number) -> Number:
        """Over the link."""
        return message / self.link_bandwidth

    def elementwise(self, moved: Number) -> Number:
        """Nothing: a fused kernel keeps what it reads and writes on the chip."""
        return moved * 0.0

    def sampling(self, rows: Number, vocab: int) -> Number:
        """fp32 logits read once."""
        return 4.0 * rows * vocab / self.bandwidth

    def _longer(self, flops: Number, moved: Number, dtype: str) -> Number:
        return np.maximum(flops / self.peak_flops(dtype), moved / self.bandwidth)


def _kv_bytes(n_kv: Any, head_dim: Any, kv_dtype: str) -> Any:
    return 2.0 * n_kv * head_dim * DTYPES[canonical_dtype(kv_dtype)].weight_bytes
