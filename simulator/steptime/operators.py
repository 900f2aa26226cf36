"""The operators of one forward pass on one GPU: what runs, how often, on which rows.

Per layer, cut in Megatron's manner: norm, QKV projection, rotary embedding, attention, output projection,
all-reduce, norm, MLP up, activation, MLP down, all-reduce; the embedding before, the final norm, the LM head
on sampled rows and sampling after. Experts replace the MLP by a router, the routed experts and shared ones;
with attention data parallelism the tokens of all ranks are gathered before and scattered after them (vLLM's
``allgather_reducescatter``). All of it depends on a number of tokens alone; attention is in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from simulator.models import LayerSpec, ModelSpec, Precision
from simulator.models.dtypes import DType, dtype
from simulator.models.layers import Gemm
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.protocol import Laws, Number

__all__ = ["Operator", "step_operators"]

Axis = Literal["tokens", "all_tokens", "rows"]
Kind = Literal[
    "gemm", "moe", "elementwise", "all_reduce", "all_gather", "reduce_scatter", "sampling", "transfer"
]


BF16 = dtype("bf16")
WIDE = 4096.0
"""Rows of a product that is bound by FLOPs."""
DEQUANTISING = 1.25
"""Products of many rows with K-quants over those in 16 bits: Q4_K_M prompts run at 0.74 to 0.95 of F16's rate on ten
NVIDIA GPUs, 0.8 in the middle (llama.cpp, XiongjieDai/GPU-Benchmarks-on-LLM-Inference aa72e0ec)."""


@dataclass(frozen=True)
class Operator:
    """One operator, *count* times per step.

    *axis* is what it scales with: the tokens of a rank, the tokens of all attention ranks, or sampled rows.
    *n*, *k*: GEMM shape; *bits* of a stored weight where no law is fitted to them; *width*: bytes per token
    (element-wise, collectives) or vocabulary; *experts*: (width, topk, number, tp, ep).
    """

    name: str
    family: str
    kind: Kind
    axis: Axis
    count: int
    n: int = 0
    k: int = 0
    width: float = 0.0
    dtype: str = "bf16"
    gpus: int = 1
    bits: float = 0.0
    experts: tuple[int, int, int, int, int] = (0, 0, 0, 1, 1)

    def seconds(self, laws: Laws, m: Number) -> Number:
        """Seconds of all *count* executions on *m* rows of its axis."""
        return self.count * self._once(laws, m)

    def _once(self, laws: Laws, m: Number) -> Number:
        match self.kind:
            case "gemm" if self.bits:
                return self._streamed(laws, m)
            case "gemm":
                return laws.gemm(m, self.n, self.k, self.dtype)
            case "moe":
                inter, topk, number, tp, ep = self.experts
                return laws.moe(m, self.k, inter, topk, number, tp, ep, self.dtype)
            case "elementwise":
                return laws.elementwise(m * self.width)
            case "all_reduce":
                return laws.all_reduce(m * self.width, self.gpus)
            case "sampling":
                return laws.sampling(m, int(self.width))
            case "transfer":
                return laws.send_recv(m * self.width)
            case _:
                return laws.collective(self.kind, m * self.width, self.gpus)

    def _streamed(self, laws: Laws, m: Number) -> Number:
        """Reading the bits, as the 16-bit product of one row with a weight of that size does, and for every further
        row a row's share of a wide 16-bit product, times what dequantising adds.
        """
        row = laws.gemm(1.0, self.bits / 16 * self.n, self.k, "fp16")
        wide = laws.gemm(WIDE, self.n, self.k, "fp16") / WIDE
        return row + DEQUANTISING * (m - 1.0) * wide

    def work(self, m: float, weight_bytes: float) -> tuple[float, float]:
        """(FLOPs, bytes of memory) of all executions; *weight_bytes* per stored weight, scales included."""
        if self.kind == "gemm":
            moved = weight_bytes * self.n * self.k + 2.0 * m * (self.n + self.k)
            return self.count * 2.0 * m * self.n * self.k, self.count * moved
        if self.kind == "moe":
            inter, topk, number, tp, ep = self.experts
            matrix, choices = 3.0 * self.k * inter / tp, m * topk
            moved = weight_bytes * matrix * min(choices, number) / ep + 4.0 * m * self.k
            return self.count * 2.0 * matrix * choices / ep, self.count * moved
        streamed = self.kind in ("elementwise", "sampling")
        size = m * self.width * (4.0 if self.kind == "sampling" else 1.0)
        return 0.0, self.count * size if streamed else 0.0


def step_operators(model: ModelSpec, precision: Precision, parallel: Parallelism) -> list[Operator]:
    """All operators of a step except attention, for one rank of the busiest stage summed over stages."""
    h = model.hidden_size
    found = [Operator("embedding", "elementwise", "elementwise", "tokens", 1, width=4.0 * h)]
    for layer in model.layers:
        found += _layer(layer, h, precision, parallel)
    if parallel.pp > 1:
        found.append(
            Operator("stage_transfer", "collective", "transfer", "tokens", parallel.pp - 1, width=2.0 * h)
        )
    return [*found, *_head(model, precision, parallel.tp)]


def _layer(layer: LayerSpec, h: int, precision: Precision, parallel: Parallelism) -> Iterator[Operator]:
    count, tp = layer.count, parallel.tp
    attention = layer.attention.shard(tp)
    yield Operator("norm", "elementwise", "elementwise", "tokens", layer.num_norms * count, width=8.0 * h)
    for gemm in attention.gemms(h):
        yield from _product(gemm, precision.linear, count)
    rotated = (attention.num_heads + attention.num_kv_heads) * attention.head_dim
    yield Operator("rotary", "elementwise", "elementwise", "tokens", count, width=4.0 * rotated)
    if tp > 1 and not layer.parallel:
        yield Operator("all_reduce", "collective", "all_reduce", "tokens", count, width=2.0 * h, gpus=tp)
    yield from _mlp(layer, h, precision, parallel)


def _product(gemm: Gemm, form: DType, count: int) -> Iterator[Operator]:
    bits = form.bits if form.streamed else 0.0
    yield Operator(gemm.name, "gemm", "gemm", "tokens", count, n=gemm.n, k=gemm.k, dtype=form.law, bits=bits)
    if form.split:  # LLM.int8(): find outliers, quantise, take them apart, scale the int32 result, add theirs
        width = (2.0 + 3.0 + 2.0) * gemm.k + (6.0 + 6.0) * gemm.n
        yield Operator("outliers", "elementwise", "elementwise", "tokens", 5 * count, width=width / 5)


def _mlp(layer: LayerSpec, h: int, precision: Precision, parallel: Parallelism) -> Iterator[Operator]:
    count, tp, mlp = layer.count, parallel.tp, layer.mlp.shard(parallel.tp)
    for gemm in mlp.dense_gemms(h):
        plain = "router" in gemm.name or gemm.n == 1
        yield from _product(gemm, BF16 if plain else precision.linear, count)
    inter = mlp.shared_intermediate if mlp.is_moe else mlp.intermediate
    if inter:
        yield Operator(
            "activation", "elementwise", "elementwise", "tokens", count, width=2.0 * inter * (2 + mlp.gated)
        )
    if mlp.is_moe:
        yield from _routed(layer, h, precision, parallel)
    if tp > 1 and not (mlp.is_moe and parallel.dp > 1):
        yield Operator("all_reduce", "collective", "all_reduce", "tokens", count, width=2.0 * h, gpus=tp)


def _routed(layer: LayerSpec, h: int, precision: Precision, parallel: Parallelism) -> Iterator[Operator]:
    mlp, count = layer.mlp, layer.count
    experts = (mlp.intermediate, mlp.topk, mlp.num_experts, parallel.moe_tp, parallel.moe_ep)
    exchange: list[Kind] = ["all_gather", "reduce_scatter"] if parallel.dp > 1 else []
    for kind in exchange:
        yield Operator(kind, "collective", kind, "all_tokens", count, width=2.0 * h, gpus=parallel.ranks)
    law = precision.experts.law
    yield Operator("experts", "moe", "moe", "all_tokens", count, k=h, dtype=law, experts=experts)


def _head(model: ModelSpec, precision: Precision, tp: int) -> Iterator[Operator]:
    h, vocab = model.hidden_size, model.vocab_size
    share, form = -(-vocab // tp), precision.lm_head
    bits = form.bits if form.streamed else 0.0
    yield Operator("final_norm", "elementwise", "elementwise", "rows", 1, width=4.0 * h)
    yield Operator("lm_head", "lm_head", "gemm", "rows", 1, n=share, k=h, dtype=form.law, bits=bits)
    if tp > 1:
        yield Operator("logits_gather", "collective", "all_gather", "rows", 1, width=2.0 * vocab, gpus=tp)
    yield Operator("sampling", "sampling", "sampling", "rows", 1, width=vocab)
