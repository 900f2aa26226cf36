"""Switches that change the model, the kernels or the launches of a forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from hwprofiles import HardwareProfile
from simulator.errors import ConfigurationError
from simulator.models import ModelSpec
from simulator.steptime.kernels import Kernels
from simulator.steptime.lora import LoraSpec
from simulator.steptime.traits import HostTraits
from simulator.techniques.options import MAX_LORA_RANK, MAX_LORAS, Techniques

__all__ = ["GUIDED_S", "kernels_of", "traits_of", "vary_attention", "without_graphs"]

GUIDED_S: Mapping[str, float] = MappingProxyType({"xgrammar": 50e-6, "gbnf": 6e-3})
"""CPU seconds per constrained row and step for the mask of its next token: XGrammar's cached masks stay under 50 µs;
llama.cpp's GBNF scans the vocabulary: 200 tokens of Qwen3-30B-A3B took 7.9 s with and 6.7 s without
(zolotukhin.ai, 2026-05-03; secondary)."""

EAGER_ALL_REDUCE_S = 20e-6
"""CPU seconds of an all-reduce that no graph replays (vLLM's custom kernel, H100: 23 us against 4.7 in a graph;
aiconfigurator @095f58a)."""


def vary_attention(model: ModelSpec, variant: str | None) -> ModelSpec:
    """*model* as if it had been trained with other KV heads; projections, KV and attention follow.

    Raises `ConfigurationError` where that is another model altogether.
    """
    if variant is None:
        return model
    latent, heads = model.attention.latent is not None, model.num_attention_heads
    if latent != (variant == "mla"):
        kind = "latent attention" if latent else f"{model.num_kv_heads} KV heads and no latent vector"
        raise ConfigurationError(
            f"attention {variant}: {model.name} has {kind}; MLA and the others do not mix"
        )
    if latent:
        return model
    kv_heads = {"mha": heads, "mqa": 1}.get(variant) or int(variant.removeprefix("gqa-"))
    if heads % kv_heads:
        raise ConfigurationError(
            f"attention {variant}: {kv_heads} KV heads must divide the {heads} query heads of {model.name}"
        )
    layers = tuple(
        replace(layer, attention=replace(layer.attention, num_kv_heads=kv_heads)) for layer in model.layers
    )
    return replace(model, layers=layers)


def kernels_of(techniques: Techniques, model: ModelSpec) -> Kernels:
    """The kernels of a forward."""
    lora = None
    if techniques.enable_lora:
        lora = LoraSpec.of(
            model, techniques.max_loras or MAX_LORAS, techniques.max_lora_rank or MAX_LORA_RANK
        )
    return Kernels(
        flash_attention=techniques.flash_attention is not False,
        fused=techniques.kernel_fusion is not False,
        sampling=techniques.sampling or "random",
        guided=techniques.guided_decoding or 0.0,
        lora=lora,
    )


def without_graphs(profile: HardwareProfile) -> HardwareProfile:
    """*profile* with the memory of captured graphs given back."""
    return profile.model_copy(update={"memory": profile.memory.model_copy(update={"graph_pool_bytes": 0.0})})


def traits_of(
    techniques: Techniques, traits: HostTraits, kernels: Kernels, profile: HardwareProfile, tp: int = 1
) -> HostTraits:
    """*traits* of a system with these switches: its graphs, the launches of a layer, the host's share of a row."""
    changes: dict[str, object] = {}
    if techniques.enforce_eager is False and not traits.graph_sizes:
        raise ConfigurationError("enforce_eager false: this system captures no CUDA graphs")
    if techniques.enforce_eager:
        changes |= {"graph_sizes": (), "mixed_graph": False}
    layer = 0.0
    if techniques.enforce_eager and traits.graph_sizes:
        layer = traits.enforce_eager_layer_s + (2 * EAGER_ALL_REDUCE_S if tp > 1 else 0.0)
    layer = max(layer, traits.eager_layer_s) + kernels.extra_launches() * profile.host.launch_s
    if layer != traits.eager_layer_s:
        changes["eager_layer_s"] = layer
    if kernels.guided:
        mask = GUIDED_S[techniques.guided_decoding_backend or "xgrammar"]
        changes["per_seq_s"] = traits.per_seq_s + kernels.guided * mask
    return replace(traits, **changes) if changes else traits  # type: ignore[arg-type]
