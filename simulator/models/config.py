"""Hugging Face ``config.json`` to `ModelSpec`.

Sizes are read from the configuration under the names that its ``model_type`` uses; what it leaves
unsaid comes from `families.py`. Multimodal configurations (``text_config``) give the language model, with
the vision encoder as a number of parameters that stay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.models.dtypes import Precision
from simulator.models.experts import layer_mlps
from simulator.models.families import FAMILIES, Family
from simulator.models.fields import Fields
from simulator.models.layers import AttentionSpec, LatentSpec, LayerSpec, MlpSpec
from simulator.models.spec import ModelSpec
from simulator.models.windows import layer_windows

__all__ = ["read_config"]


def read_config(source: Mapping[str, Any] | str | Path, name: str | None = None) -> ModelSpec:
    """The model described by *source*: a mapping, a file or a directory that holds ``config.json``."""
    data, path = _load(source)
    outer = Fields(data, path)
    model_type = outer.text("model_type")
    if model_type not in FAMILIES:
        raise outer.error("model_type", f"must be one of {', '.join(sorted(FAMILIES))}", model_type)
    inner = outer.section("text_config") or outer
    return _spec(outer, inner, model_type, name or _name(outer, path))


def _load(source: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], object]:
    if isinstance(source, Mapping):
        return source, "config"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(path, f"must be JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(path, "must be a JSON object")
    return data, path


def _name(fields: Fields, path: object) -> str:
    if isinstance(path, Path):
        return path.parent.name if path.name == "config.json" else path.stem
    return str(fields.data.get("_name_or_path") or fields.text("model_type"))


def _spec(outer: Fields, fields: Fields, model_type: str, name: str) -> ModelSpec:
    family = FAMILIES[model_type]
    hidden = fields.integer("hidden_size", "n_embd")
    norm = hidden * (2 if family.norm_bias else 1)
    tied = outer.boolean("tie_word_embeddings", fields.boolean("tie_word_embeddings", family.tied))
    embedding_norm = norm if family.positions == "alibi" else 0
    return ModelSpec(
        name=name,
        architecture=model_type,
        hidden_size=hidden,
        vocab_size=fields.integer("vocab_size", default=262_208 if model_type == "gemma3" else None),
        max_position_embeddings=fields.integer(
            "max_position_embeddings", "n_positions", "seq_length", default=_default_context(model_type)
        ),
        layers=_layers(fields, family, hidden, norm),
        tied_embeddings=tied,
        position_parameters=_position_parameters(fields, family, hidden),
        embedding_norm_parameters=embedding_norm,
        final_norm_parameters=norm,
        head_bias=family.head_bias,
        vision_parameters=_vision_parameters(outer, hidden),
        mtp_layers=fields.integer("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0),
        native=_native(outer),
    )


def _default_context(model_type: str) -> int | None:
    return {"gemma3": 131_072, "bloom": 2048, "falcon": 2048}.get(model_type)


def _layers(fields: Fields, family: Family, hidden: int, norm: int) -> tuple[LayerSpec, ...]:
    count = fields.integer("num_hidden_layers", "n_layer")
    attention = _attention(fields, family, hidden)
    norms = _norm_parameters(fields, family, norm)
    pairs = zip(layer_mlps(fields, family, hidden, count), layer_windows(fields, family, count), strict=True)
    parallel = bool(family.parallel_field) and fields.boolean(family.parallel_field, True)
    groups: dict[tuple[MlpSpec, int | None], int] = {}
    for pair in pairs:
        groups[pair] = groups.get(pair, 0) + 1
    return tuple(
        LayerSpec(n, attention, mlp, window, norms // norm, norms, parallel)
        for (mlp, window), n in groups.items()
    )


def _norm_parameters(fields: Fields, family: Family, norm: int) -> int:
    if (
        family.kv_heads == "falcon"
    ):  # one norm where attention and MLP run in parallel, unless each has its own
        two = fields.boolean("new_decoder_architecture", False) or not fields.boolean("parallel_attn", True)
        return (2 if two else 1) * norm
    return family.norms * norm


def _attention(fields: Fields, family: Family, hidden: int) -> AttentionSpec:
    heads = fields.integer("num_attention_heads", "n_head")
    head_dim = fields.integer("head_dim", default=hidden // heads)
    bias = fields.boolean("attention_bias", fields.boolean("bias", False)) or family.qkv_bias
    out_bias = family.out_bias or (bias and not family.qkv_bias)
    latent = _latent(fields)
    extra = heads * family.sinks + 2 * head_dim * family.qk_norm
    if latent is not None:
        extra = latent.q_rank + latent.kv_rank  # norms of the compressed vectors
    return AttentionSpec(heads, _kv_heads(fields, family, heads), head_dim, bias, out_bias, extra, latent)


def _kv_heads(fields: Fields, family: Family, heads: int) -> int:
    if family.kv_heads == "all":
        return heads
    if family.kv_heads == "falcon" and not fields.boolean("new_decoder_architecture", False):
        return 1 if fields.boolean("multi_query", True) else heads
    kv = fields.integer("num_key_value_heads", "num_kv_heads", default=heads)
    if heads % kv:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads ({heads})", kv)
    return kv


def _latent(fields: Fields) -> LatentSpec | None:
    if fields.data.get("kv_lora_rank") is None:
        return None
    return LatentSpec(
        kv_rank=fields.integer("kv_lora_rank"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        v_dim=fields.integer("v_head_dim"),
        q_rank=fields.integer("q_lora_rank", default=0),
    )


def _position_parameters(fields: Fields, family: Family, hidden: int) -> int:
    if family.positions == "learned":
        return hidden * fields.integer("n_positions", "max_position_embeddings")
    if family.positions != "opt":
        return 0
    width = fields.integer("word_embed_proj_dim", default=hidden)
    if width != hidden:
        raise fields.error("word_embed_proj_dim", f"must equal hidden_size ({hidden})", width)
    return (fields.integer("max_position_embeddings") + 2) * hidden  # OPT keeps two extra rows


def _vision_parameters(outer: Fields, hidden: int) -> int:
    """A vision transformer: patches, positions, encoder layers with biases, projection to *hidden*."""
    vision = outer.section("vision_config")
    if vision is None:
        return 0
    width, inter = vision.integer("hidden_size"), vision.integer("intermediate_size")
    patch, side = vision.integer("patch_size"), vision.integer("image_size")
    layer = 4 * width * (width + 1) + 2 * width * inter + inter + width + 4 * width
    positions = (side // patch) ** 2
    return vision.integer("num_hidden_layers") * layer + (3 * patch * patch + positions + hidden) * width


def _native(outer: Fields) -> Precision:
    """The format of the published weights: ``quantization_config`` or ``torch_dtype``."""
    plain = str(outer.data.get("torch_dtype") or outer.data.get("dtype") or "bf16").removeprefix("torch.")
    plain = "fp16" if plain in ("float16", "fp16") else "bf16"
    quantised = outer.section("quantization_config")
    if quantised is None:
        return Precision(weights=plain, kv=plain, head=plain)
    method = quantised.text("quant_method")
    if method == "mxfp4":  # gpt-oss quantises the experts only
        return Precision(weights=plain, moe="mxfp4", kv=plain, head=plain)
    if method == "fp8":
        blocks = quantised.integers("weight_block_size")
        return Precision(weights="fp8_block" if blocks else "fp8", kv=plain, head=plain)
    if method in ("awq", "gptq"):
        bits = quantised.integer("bits", "w_bit", default=4)
        return Precision(weights="int8_wo" if bits == 8 else "int4", kv=plain, head=plain)
    raise outer.error("quantization_config.quant_method", "must be fp8, awq, gptq or mxfp4", method)
