"""A language model as a simulator sees it: shapes, parameters, FLOPs and bytes; no efficiency.

All counts follow from the layers' matrix products (`layers.py`). A decoder-only model has an embedding
(vocab x hidden), its layers, a final norm and an LM head that may be the embedding again (tied).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.models.dtypes import Precision, dtype
from simulator.models.layers import AttentionSpec, Gemm, LayerSpec

__all__ = ["ModelSpec"]


@dataclass(frozen=True)
class ModelSpec:
    """Architecture of a decoder-only transformer.

    Sizes in elements, contexts in tokens. *native_dtype* is the format of the published weights, by
    part (`Precision`). ``layers`` groups identical layers.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    tied_embeddings: bool = False
    position_parameters: int = 0
    embedding_norm_parameters: int = 0
    final_norm_parameters: int = 0
    head_bias: bool = False
    vision_parameters: int = 0
    mtp_layers: int = 0
    """Layers for multi-token prediction that were published with it; they are not among ``layers``."""
    native: Precision = field(default_factory=Precision)

    @classmethod
    def from_config(cls, source: Mapping[str, Any] | str | Path, name: str | None = None) -> ModelSpec:
        """Read a Hugging Face ``config.json``, given as mapping, file or directory.

        Raises InputError naming the field that is missing, of wrong type or unknown.
        """
        from simulator.models.config import read_config

        return read_config(source, name)

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def attention(self) -> AttentionSpec:
        """Attention of the first layer; every supported architecture has one shape throughout."""
        return self.layers[0].attention

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""
        return self.attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return self.attention.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a query head."""
        return self.attention.head_dim

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(layer.mlp.is_moe for layer in self.layers)

    @property
    def lm_head(self) -> Gemm:
        """Projection of a sampled row to logits."""
        return Gemm("lm_head", self.vocab_size, self.hidden_size, self.head_bias)

    def parameters_by_part(self, *, active: bool = False) -> dict[str, int]:
        """Parameters of embedding, attention, mlp, experts, router, norms, lm_head and vision.

        *active* counts what multiplies a token: of the experts those that it visits, no vision encoder and no
        embedding table beside the LM head (a lookup). gpt-oss and DeepSeek count so; Qwen includes the table.
        """
        h = self.hidden_size
        parts = dict.fromkeys(("attention", "mlp", "experts", "router", "norms"), 0)
        for layer in self.layers:
            mlp, n = layer.mlp, layer.count
            parts["attention"] += n * (_size(layer.attention.gemms(h)) + layer.attention.extra_parameters)
            parts["norms"] += n * layer.norm_parameters
            shared = _size(mlp.dense_gemms(h))
            if mlp.is_moe:
                router = mlp.num_experts * h + (mlp.num_experts if mlp.router_bias else 0)
                visited = mlp.topk if active else mlp.num_experts
                parts["router"] += n * router
                parts["experts"] += n * visited * _size(mlp.expert_gemms(h))
                shared -= router
            parts["mlp"] += n * shared
        parts["norms"] += self.final_norm_parameters + self.embedding_norm_parameters
        looked_up = active and not self.tied_embeddings
        parts["embedding"] = 0 if looked_up else self.vocab_size * h + self.position_parameters
        parts["lm_head"] = 0 if self.tied_embeddings else self.lm_head.parameters
        if self.vision_parameters and not active:
            parts["vision"] = self.vision_parameters
        return parts

    @property
    def total_parameters(self) -> int:
        """All stored parameters."""
        return sum(self.parameters_by_part().values())

    @property
    def active_parameters(self) -> int:
        """Parameters that multiply one token (see `parameters_by_part`)."""
        return sum(self.parameters_by_part(active=True).values())

    def weight_bytes(self, precision: Precision | None = None) -> float:
        """Bytes of all weights; quantised formats with their scales; embedding and norms in 16 bits."""
        formats, parts = precision or self.native, self.parameters_by_part()
        size = {"attention": formats.linear, "mlp": formats.linear, "experts": formats.experts}
        return sum(n * size.get(part, formats.lm_head).bytes for part, n in parts.items())

    def kv_bytes_per_token(self, kv_dtype: str = "bf16", tp: int = 1) -> float:
        """Bytes of KV that one token leaves on each of *tp* devices, over all layers.

        Windowed layers are counted in full: the block managers that free what left the window are
        described by the system, not by the model.
        """
        shards = ((layer.count, layer.attention.shard(tp)) for layer in self.layers)
        return dtype(kv_dtype).bytes * sum(count * part.kv_numbers for count, part in shards)

    def flops_per_token(self, context: float = 0.0) -> float:
        """FLOPs of one decoded token that attends to *context* tokens, LM head included.

        Attention: 2 FLOPs for q·k and 2 for p·v per head dimension and context token (within the window).
        """
        total = float(self.lm_head.flops_per_token)
        for layer in self.layers:
            q, _, d = layer.attention.decode_heads
            seen = context if layer.window is None else min(context, layer.window)
            total += layer.count * (self._linear_flops(layer) + 4 * q * d * seen)
        return total

    def prefill_flops(self, tokens: int, context: int = 0, *, causal: bool = True) -> float:
        """FLOPs of *tokens* prompt tokens after *context* cached ones; logits of the last row only."""
        total = float(self.lm_head.flops_per_token)
        for layer in self.layers:
            q, _, d = layer.attention.prefill_heads
            pairs = attended_pairs(tokens, context, layer.window) if causal else tokens * (context + tokens)
            total += layer.count * (tokens * self._linear_flops(layer) + 4 * q * d * pairs)
        return total

    def _linear_flops(self, layer: LayerSpec) -> int:
        h, mlp = self.hidden_size, layer.mlp
        gemms = (*layer.attention.gemms(h), *mlp.dense_gemms(h))
        routed = mlp.topk * sum(g.flops_per_token for g in mlp.expert_gemms(h))
        return sum(g.flops_per_token for g in gemms) + routed


def attended_pairs(tokens: int, context: int, window: int | None = None) -> float:
    """(query, key) pairs of a causal chunk: query i sees context + i + 1 keys, at most *window*."""
    if window is None or context + tokens <= window:
        return tokens * context + tokens * (tokens + 1) / 2
    growing = max(0, window - context)  # queries that do not fill the window yet
    return growing * context + growing * (growing + 1) / 2 + (tokens - growing) * window


def _size(gemms: tuple[Gemm, ...]) -> int:
    return sum(gemm.parameters for gemm in gemms)
