"""The MLP of every layer: dense, routed, or both (DeepSeek's first layers, Llama 4's every second)."""

from __future__ import annotations

from dataclasses import replace

from simulator.models.families import Family
from simulator.models.fields import Fields
from simulator.models.layers import MlpSpec

__all__ = ["layer_mlps"]


def layer_mlps(fields: Fields, family: Family, hidden: int, num_layers: int) -> list[MlpSpec]:
    """One `MlpSpec` per layer."""
    if family.moe == "deepseek":
        return _deepseek(fields, family, hidden, num_layers)
    if family.moe == "llama4":
        return _llama4(fields, num_layers)
    if family.moe == "qwen":
        return _qwen(fields, family, hidden, num_layers)
    dense = _dense(fields, family, hidden)
    if family.moe == "none":
        return [dense] * num_layers
    routed = replace(
        dense,
        num_experts=fields.integer("num_local_experts"),
        topk=fields.integer("num_experts_per_tok"),
        router_bias=family.moe == "gpt_oss",
    )
    return [routed] * num_layers


def _dense(fields: Fields, family: Family, hidden: int) -> MlpSpec:
    default = family.default_intermediate * hidden or None
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    inter = fields.integer(*names, default=default)
    biased = family.mlp_bias or fields.boolean("mlp_bias", False)
    biased = biased or (family.kv_heads == "falcon" and fields.boolean("bias", False))
    return MlpSpec(inter, family.gated, biased)


def _deepseek(fields: Fields, family: Family, hidden: int, num_layers: int) -> list[MlpSpec]:
    inter = fields.integer("moe_intermediate_size")
    routed = MlpSpec(
        inter,
        num_experts=fields.integer("n_routed_experts"),
        topk=fields.integer("num_experts_per_tok"),
        shared_intermediate=inter * fields.integer("n_shared_experts", default=0, least=0),
        router_bias=fields.data.get("topk_method") == "noaux_tc",  # the balancing bias of V3
    )
    first, every = (
        fields.integer("first_k_dense_replace", default=0, least=0),
        fields.integer("moe_layer_freq", default=1),
    )
    dense = _dense(fields, family, hidden) if first or every > 1 else routed
    return [routed if i >= first and i % every == 0 else dense for i in range(num_layers)]


def _llama4(fields: Fields, num_layers: int) -> list[MlpSpec]:
    inter, step = fields.integer("intermediate_size"), fields.integer("interleave_moe_layer_step", default=1)
    routed = MlpSpec(
        inter,
        num_experts=fields.integer("num_local_experts"),
        topk=fields.integer("num_experts_per_tok", default=1),
        shared_intermediate=inter,
    )
    dense = MlpSpec(fields.integer("intermediate_size_mlp"))
    return [routed if (i + 1) % step == 0 else dense for i in range(num_layers)]


def _qwen(fields: Fields, family: Family, hidden: int, num_layers: int) -> list[MlpSpec]:
    shared = fields.integer("shared_expert_intermediate_size", default=0, least=0)
    routed = MlpSpec(
        fields.integer("moe_intermediate_size"),
        num_experts=fields.integer("num_experts", "num_local_experts"),
        topk=fields.integer("num_experts_per_tok"),
        shared_intermediate=shared,
        shared_gate=shared > 0,
    )
    step, only_dense = (
        fields.integer("decoder_sparse_step", default=1),
        fields.integers("mlp_only_layers") or [],
    )
    if step == 1 and not only_dense:
        return [routed] * num_layers
    dense = _dense(fields, family, hidden)
    return [dense if i in only_dense or (i + 1) % step else routed for i in range(num_layers)]
