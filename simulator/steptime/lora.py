"""What LoRA adapters cost: two thin products beside every projection, and their weights.

An adapter of rank r adds B(A x) to y = W x, with A of shape [r, k] and B of shape [n, r] (Hu et al. 2021, arXiv
2106.09685). A server that batches requests of different adapters gathers for every row the A and B of its own (Punica,
arXiv 2310.18547; S-LoRA, arXiv 2311.03285): one *shrink* kernel and one *expand* kernel per projection,

    FLOPs   2 · rows · r · (parts · k + n)
    bytes   distinct · 2 r · (parts · k + n)  +  rows · (2 k + 2 · 4 · parts · r + 2 · 2 n)

where a merged projection (qkv: 3 parts, gate and up: 2) has an A for each part, the r intermediate numbers are fp32 and
the output is read and written again. Tensor parallelism cuts B of a column-parallel and A of a row-parallel projection;
the other half is replicated (vLLM without ``fully_sharded_loras``). Routed experts carry no adapter.

A step is priced as if every row had an adapter and min(rows, ``max_loras``) of them differed: an upper bound that is
close, because launches make up most of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from simulator.steptime.operators import Operator
from simulator.steptime.protocol import Laws, Number

if TYPE_CHECKING:
    from simulator.models import LayerSpec, ModelSpec

__all__ = ["LoraOperator", "LoraSpec", "adapter_bytes"]

PARTS: Mapping[str, int] = MappingProxyType(
    {
        "qkv_proj": 3,
        "q_proj": 1,
        "q_a_proj": 1,
        "q_b_proj": 1,
        "kv_a_proj": 1,
        "kv_b_proj": 1,
        "o_proj": 1,
        "gate_up_proj": 2,
        "up_proj": 1,
        "down_proj": 1,
    }
)
"""Projections that carry adapters, and how many matrices are merged in each."""


@dataclass(frozen=True)
class LoraSpec:
    """At most *max_loras* adapters of rank *rank* in a batch; *kernels_per_layer* are launched for them."""

    max_loras: int
    rank: int
    kernels_per_layer: int = 0

    @classmethod
    def of(cls, model: ModelSpec, max_loras: int, rank: int) -> LoraSpec:
        """For the projections of *model*."""
        projections = max(len(_projections(layer, model.hidden_size, 1)) for layer in model.layers)
        return cls(max_loras, rank, 2 * projections)

    def operators(self, operator: Operator) -> Iterator[Operator]:
        """The two kernels that run beside *operator*, if it is a projection."""
        if operator.kind == "gemm" and operator.axis == "tokens" and operator.name in PARTS:
            yield LoraOperator(
                f"lora_{operator.name}",
                "lora",
                "elementwise",
                "tokens",
                operator.count,
                n=operator.n,
                k=operator.k,
                rank=self.rank,
                parts=PARTS[operator.name],
                max_loras=self.max_loras,
            )


@dataclass(frozen=True)
class LoraOperator(Operator):
    """Shrink and expand of one projection for a batch of adapters of *rank*."""

    rank: int = 1
    parts: int = 1
    max_loras: int = 1

    def _once(self, laws: Laws, m: Number) -> Number:
        shrink, expand = self._bytes(m)
        flops = self._flops(m) / laws.peak_flops(self.dtype)
        return np.maximum(laws.elementwise(shrink) + laws.elementwise(expand), flops)

    def work(self, m: float, weight_bytes: float) -> tuple[float, float]:
        """(FLOPs, bytes of memory) of all executions; adapters are in 16 bits whatever the weights are in."""
        return self.count * self._flops(m), self.count * float(sum(self._bytes(m)))

    def _flops(self, m: Number) -> Number:
        return 2.0 * m * self.rank * (self.parts * self.k + self.n)

    def _bytes(self, m: Number) -> tuple[Number, Number]:
        distinct, inner = np.minimum(m, self.max_loras), 4.0 * self.parts * self.rank
        shrink = distinct * 2.0 * self.rank * self.parts * self.k + m * (2.0 * self.k + inner)
        expand = distinct * 2.0 * self.rank * self.n + m * (inner + 4.0 * self.n)
        return shrink, expand


def adapter_bytes(model: ModelSpec, rank: int, tp: int = 1) -> float:
    """Bytes of one adapter of *rank* on each of *tp* devices: 2 r (parts · k + n) for every projection."""
    return sum(
        layer.count
        * 2.0
        * rank
        * sum(PARTS[name] * k + n for name, n, k in _projections(layer, model.hidden_size, tp))
        for layer in model.layers
    )


def _projections(layer: LayerSpec, hidden: int, tp: int) -> list[tuple[str, int, int]]:
    mlp = layer.mlp.shard(tp)
    gemms = (*layer.attention.shard(tp).gemms(hidden), *(() if mlp.is_moe else mlp.dense_gemms(hidden)))
    return [(gemm.name, gemm.n, gemm.k) for gemm in gemms if gemm.name in PARTS]
