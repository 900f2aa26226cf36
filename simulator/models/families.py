"""What a ``config.json`` leaves unsaid, by ``model_type``: the habits of each architecture.

A configuration gives sizes; whether projections have biases, the MLP a gate or the norms a shift is in the
modelling code of Hugging Face transformers. One `Family` per ``model_type`` writes that down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """Habits of one architecture; *tied* and *attention_bias* are defaults that a configuration overrides."""

    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False
    norms: int = 2  # per layer
    norm_bias: bool = False  # LayerNorm has a shift, RMSNorm has none
    qk_norm: bool = False
    sinks: bool = False  # one learned logit per head
    parallel_field: str = ""  # flag for attention and MLP side by side, on unless the configuration says no
    moe: Literal["none", "mixtral", "qwen", "deepseek", "llama4", "gpt_oss"] = "none"
    windows: Literal["none", "all", "qwen", "gemma2", "gemma3", "gpt_oss", "llama4"] = "none"
    positions: Literal["rotary", "learned", "opt", "alibi"] = "rotary"
    kv_heads: Literal["config", "falcon", "all"] = "config"
    default_intermediate: int = 0  # multiple of the hidden size when the field is absent


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(),
        "internlm": Family(),
        "internlm2": Family(),
        "mistral": Family(windows="all"),
        "mixtral": Family(moe="mixtral", windows="all"),
        "qwen2": Family(qkv_bias=True, windows="qwen"),
        "qwen2_moe": Family(qkv_bias=True, moe="qwen", windows="qwen"),
        "qwen3": Family(qk_norm=True, windows="qwen"),
        "qwen3_moe": Family(qk_norm=True, moe="qwen", windows="qwen"),
        "gemma": Family(tied=True),
        "gemma2": Family(tied=True, norms=4, windows="gemma2"),
        "gemma3": Family(tied=True, norms=4, qk_norm=True, windows="gemma3"),
        "gemma3_text": Family(tied=True, norms=4, qk_norm=True, windows="gemma3"),
        "phi": Family(
            gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, norms=1, norm_bias=True,
            parallel_field="parallel_attn",
        ),
        "phi3": Family(windows="all"),
        "llama4": Family(moe="llama4", windows="llama4"),
        "llama4_text": Family(moe="llama4", windows="llama4"),
        "deepseek_v2": Family(moe="deepseek"),
        "deepseek_v3": Family(moe="deepseek"),
        "gpt_oss": Family(
            qkv_bias=True, out_bias=True, mlp_bias=True, sinks=True, moe="gpt_oss", windows="gpt_oss"
        ),
        "opt": Family(
            gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True, norm_bias=True,
            positions="opt", kv_heads="all",
        ),
        "gpt2": Family(
            gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True, norm_bias=True,
            positions="learned", kv_heads="all", default_intermediate=4,
        ),
        "gptj": Family(
            gated=False, mlp_bias=True, head_bias=True, norms=1, norm_bias=True, kv_heads="all",
            default_intermediate=4, parallel_field="parallel_attn",
        ),
        "gpt_neox": Family(
            gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norm_bias=True, kv_heads="all",
            parallel_field="use_parallel_residual",
        ),
        "bloom": Family(
            gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True, norm_bias=True,
            positions="alibi", kv_heads="all", default_intermediate=4,
        ),
        "falcon": Family(
            gated=False, tied=True, norm_bias=True, kv_heads="falcon", default_intermediate=4,
            parallel_field="parallel_attn",
        ),
    }
)  # fmt: skip
