"""One transformer layer as the matrix products it is made of.

Attention comes as multi-head, grouped-query, multi-query (Shazeer 2019; Ainslie et al. 2023) or latent
(DeepSeek-V2, arXiv 2405.04434, section 2.1); the MLP as plain, gated (SwiGLU) or as routed experts with
shared ones. Every spec can be cut for tensor parallelism in Megatron's manner (arXiv 1909.08053):
projections into heads or the intermediate axis by column, projections back by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from simulator.errors import ConfigurationError

__all__ = ["AttentionSpec", "Gemm", "LatentSpec", "LayerSpec", "MlpSpec"]


class Gemm(NamedTuple):
    """A weight of shape [n, k], applied to every token: y[m, n] = x[m, k] Wᵀ."""

    name: str
    n: int
    k: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.n * self.k + (self.n if self.bias else 0)

    @property
    def flops_per_token(self) -> int:
        """One multiplication and one addition per weight."""
        return 2 * self.n * self.k


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: keys and values are rebuilt from one latent vector per token."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int
    q_rank: int = 0  # 0: queries are projected directly (DeepSeek-V2-Lite)

    @property
    def cached(self) -> int:
        """Numbers kept per token and layer: the latent vector and the shared rotary key."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of a layer; ``num_kv_heads`` equal to ``num_heads`` is MHA, 1 is MQA."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    extra_parameters: int = 0  # sinks, query and key norms
    latent: LatentSpec | None = None

    def shard(self, tp: int) -> AttentionSpec:
        """The part of one of *tp* devices; fewer KV heads than devices are replicated."""
        if self.num_heads % tp:
            raise ConfigurationError(
                f"tensor parallel size {tp} does not divide {self.num_heads} attention heads"
            )
        return replace(self, num_heads=self.num_heads // tp, num_kv_heads=max(1, self.num_kv_heads // tp))

    def gemms(self, hidden: int) -> tuple[Gemm, ...]:
        """The projections around the attention of these heads."""
        if self.latent is not None:
            return self._latent_gemms(hidden, self.latent)
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (Gemm("qkv_proj", q + 2 * kv, hidden, self.qkv_bias), Gemm("o_proj", hidden, q, self.out_bias))

    def _latent_gemms(self, hidden: int, latent: LatentSpec) -> tuple[Gemm, ...]:
        heads, q = self.num_heads, self.num_heads * (latent.nope_dim + latent.rope_dim)
        queries = (
            (Gemm("q_a_proj", latent.q_rank, hidden), Gemm("q_b_proj", q, latent.q_rank))
            if latent.q_rank
            else (Gemm("q_proj", q, hidden),)
        )
        return (
            *queries,
            Gemm("kv_a_proj", latent.cached, hidden),
            # Decoding applies the same weights to queries and outputs ("absorbed"): equal work.
            Gemm("kv_b_proj", heads * (latent.nope_dim + latent.v_dim), latent.kv_rank),
            Gemm("o_proj", hidden, heads * latent.v_dim),
        )

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token by these heads: K and V of each KV head, or the latent vector."""
        return self.latent.cached if self.latent else 2 * self.num_kv_heads * self.head_dim

    @property
    def kv_pieces(self) -> int:
        """Tensors that a layer's cache is: K and V, or the latent vector."""
        return 1 if self.latent else 2

    @property
    def prefill_heads(self) -> tuple[int, int, float]:
        """(query heads, KV heads, head dimension) that the prefill kernel sees.

        Latent attention runs as MHA with different key and value widths: their mean has the same FLOPs.
        """
        if self.latent is None:
            return self.num_heads, self.num_kv_heads, self.head_dim
        lat = self.latent
        return self.num_heads, self.num_heads, (lat.nope_dim + lat.rope_dim + lat.v_dim) / 2

    @property
    def decode_heads(self) -> tuple[float, int, float]:
        """(query heads, KV heads, head dimension) that the decode kernel sees.

        Latent attention decodes as MQA over the cached vector: per context token it reads ``cached``
        numbers once and does 2·heads·(cached + kv_rank) FLOPs. As ordinary MQA (2·d numbers, 4·q·d FLOPs):
        d = cached/2, q = heads·(cached + kv_rank)/cached.
        """
        if self.latent is None:
            return self.num_heads, self.num_kv_heads, self.head_dim
        cached = self.latent.cached
        return self.num_heads * (cached + self.latent.kv_rank) / cached, 1, cached / 2


@dataclass(frozen=True)
class MlpSpec:
    """A dense MLP, or *num_experts* of them of which each token visits *topk*, plus a shared one."""

    intermediate: int
    gated: bool = True
    bias: bool = False
    num_experts: int = 0
    topk: int = 0
    shared_intermediate: int = 0
    router_bias: bool = False
    shared_gate: bool = False

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed."""
        return self.num_experts > 0

    def shard(self, tp: int) -> MlpSpec:
        """The dense part (or shared experts) of one of *tp* devices."""
        return replace(
            self,
            intermediate=-(-self.intermediate // tp),
            shared_intermediate=-(-self.shared_intermediate // tp),
        )

    def expert_gemms(self, hidden: int) -> tuple[Gemm, ...]:
        """One expert, or the dense MLP."""
        return self._pair("", hidden, self.intermediate)

    def dense_gemms(self, hidden: int) -> tuple[Gemm, ...]:
        """What every token passes: the MLP, or router and shared experts."""
        if not self.is_moe:
            return self.expert_gemms(hidden)
        router = (Gemm("router", self.num_experts, hidden, self.router_bias),)
        gate = (Gemm("shared_expert_gate", 1, hidden),) if self.shared_gate else ()
        shared = self._pair("shared_", hidden, self.shared_intermediate) if self.shared_intermediate else ()
        return (*router, *gate, *shared)

    def _pair(self, prefix: str, hidden: int, inter: int) -> tuple[Gemm, ...]:
        up = Gemm(
            prefix + ("gate_up_proj" if self.gated else "up_proj"),
            inter * (1 + self.gated),
            hidden,
            self.bias,
        )
        return up, Gemm(prefix + "down_proj", hidden, inter, self.bias)


@dataclass(frozen=True)
class LayerSpec:
    """*count* identical layers; *window* is how far back attention sees (None: everything).

    *parallel* layers add attention and MLP to the same input (GPT-J, Wang and Komatsuzaki 2021): one
    all-reduce instead of two.
    """

    count: int
    attention: AttentionSpec
    mlp: MlpSpec
    window: int | None = None
    num_norms: int = 2
    norm_parameters: int = 0
    parallel: bool = False
