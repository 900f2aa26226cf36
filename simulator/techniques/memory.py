"""Switches that change what lies in GPU memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.memory import MemoryBudget
from simulator.models import ModelSpec
from simulator.steptime.kernels import Kernels
from simulator.steptime.lora import adapter_bytes
from simulator.steptime.materialised import score_memory
from simulator.steptime.parallelism import Parallelism

__all__ = ["extra_memory", "without_kv"]

SCORES_CONTEXT = 8192
"""Tokens to which a context that nobody asked for is cut where scores are materialised: they grow with its square."""


def extra_memory(
    kernels: Kernels, model: ModelSpec, parallel: Parallelism, limits: Mapping[str, Any]
) -> dict[str, float]:
    """Bytes per GPU, by what takes them: slots of adapters, scores of the largest forward."""
    found: dict[str, float] = {}
    if kernels.lora is not None:
        lora = kernels.lora
        found["lora_adapters"] = lora.max_loras * adapter_bytes(model, lora.rank, parallel.tp) / parallel.pp
    if not kernels.flash_attention:
        context = limits.get("max_model_len", SCORES_CONTEXT)
        whole = limits.get("max_batch_size", 1) * context
        tokens = limits.get("max_num_batched_tokens", whole)
        if limits.get("enable_chunked_prefill") is False:  # a prompt is not cut to the budget
            tokens = max(tokens, context)
        found["attention_scores"] = score_memory(model.num_attention_heads // parallel.tp, tokens, context)
    return found


def without_kv(budget: MemoryBudget, token_bytes: float) -> MemoryBudget:
    """*budget* of a system that keeps no keys and values: what they would take holds a forward's activations.

    *token_bytes*: of one token of a forward. Blocks are then tokens that can be computed at once.
    """
    items = {**budget.items, "activations": budget.items["activations"] + budget.kv_cache, "kv_cache": 0.0}
    tokens = int(items["activations"] // token_bytes)
    return replace(budget, items=items, block_bytes=0.0, num_gpu_blocks=tokens // budget.block_size)
