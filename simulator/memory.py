"""How many blocks of KV cache a serving system gets on a device.

Weights, activations of the largest batch, the CUDA context, communication buffers and captured graphs come
first; what is left for keys and values is decided by a rule that differs from system to system
(`memory_rules.py`).

vLLM captures its graphs outside that subtraction: their pool comes out of the other 8 or 10 per cent. Under
saturation this number matters more than any kernel: 2588 blocks instead of 3400 moved a peer's TTFT
error from -20.7 % to 0.6 % (LLMServingSim changelog, RTX 4090).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hwprofiles import HardwareProfile
from simulator.errors import CapacityError, ConfigurationError
from simulator.memory_rules import MEMORY_RULES, MemoryRule, memory_rule
from simulator.models import LayerSpec, ModelSpec, Precision
from simulator.models.drafts import DraftSpec
from simulator.steptime.parallelism import Parallelism

__all__ = [
    "MEMORY_RULES",
    "MemoryBudget",
    "MemoryRule",
    "draft_bytes_per_gpu",
    "kv_budget",
    "memory_rule",
    "weight_bytes_per_gpu",
]

MIB = 2**20
LOGITS_BYTES = 26.0
"""Per sampled row and vocabulary entry when a sort-based top-k and top-p sampler is profiled: 16-bit logits
(2), their fp32 copy (4), sorted values (4) and 64-bit indices (8), probabilities (4), their running sum (4).
"""

LARGEST_TP = 64
NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes on the fullest GPU of a replica, by what takes them; negative ``unused`` means overcommitted.

    *num_gpu_blocks* counts the whole replica: under attention data parallelism each rank has its own share.
    """

    system: str
    rule: MemoryRule
    total: float
    items: Mapping[str, float]
    block_size: int
    block_bytes: float
    num_gpu_blocks: int
    observed: str = ""
    """Where the number of blocks was seen, if no rule gave it."""

    @property
    def kv_cache(self) -> float:
        """Bytes of KV cache per GPU, before rounding to blocks."""
        return self.items["kv_cache"]

    @property
    def unused(self) -> float:
        """Bytes per GPU that nothing takes."""
        return self.total - sum(self.items.values())

    @property
    def tokens(self) -> int:
        """Tokens of KV that the replica holds."""
        return self.num_gpu_blocks * self.block_size


def kv_budget(
    model: ModelSpec,
    profile: HardwareProfile,
    parallelism: Parallelism | None = None,
    system_rule: str = "vllm",
    gpu_memory_utilization: float | None = None,
    block_size: int = 16,
    precision: Precision | None = None,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    on_gpu: tuple[float, float] = (1.0, 1.0),
    draft: tuple[float, float] = (0.0, 0.0),
    extra: Mapping[str, float] = NOTHING,
) -> MemoryBudget:
    """The KV cache that *system_rule* gives *model* on *profile*, with these shares of weights and KV *on_gpu*.

    *draft*: bytes per GPU of the weights of what drafts tokens, and of its KV per token. *extra*: further bytes per
    GPU, by what takes them.
    Raises CapacityError when not one block is left, naming the smallest tensor parallel size that would do.
    """
    parallel, formats = parallelism or Parallelism(), precision or model.native
    if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
        raise ConfigurationError(f"gpu_memory_utilization {gpu_memory_utilization} must be in (0, 1]")
    if block_size < 1:
        raise ConfigurationError(f"block_size {block_size} must be at least 1")
    limits = (gpu_memory_utilization, block_size, max_num_batched_tokens, max_num_seqs, on_gpu, draft, extra)
    budget = _budget(model, profile, parallel, system_rule, formats, *limits)
    if budget.num_gpu_blocks < 1:
        fits = (
            tp
            for tp in _larger(model, parallel)
            if _budget(model, profile, replace(parallel, tp=tp), system_rule, formats, *limits).num_gpu_blocks
        )
        raise CapacityError(_does_not_fit(model, profile, parallel, formats, budget, next(fits, None)))
    return budget


def _budget(
    model: ModelSpec,
    profile: HardwareProfile,
    parallel: Parallelism,
    system: str,
    formats: Precision,
    utilization: float | None,
    block_size: int,
    max_tokens: int,
    max_seqs: int,
    on_gpu: tuple[float, float],
    draft: tuple[float, float],
    extra: Mapping[str, float],
) -> MemoryBudget:
    name, rule = memory_rule(system)
    if utilization is not None:
        rule = replace(
            rule, fraction=utilization, source=f"gpu_memory_utilization {utilization:g}, as stated"
        )
    memory = profile.memory
    items = {
        "weights": on_gpu[0] * weight_bytes_per_gpu(model, formats, parallel),
        "activations": activation_bytes(
            model, memory.activation_factor, parallel.tp, -(-max_tokens // parallel.pcp), max_seqs
        ),
        "cuda_context": memory.cuda_context_bytes,
        "nccl_buffers": memory.nccl_bytes if parallel.num_gpus > 1 else 0.0,
        "graph_pool": memory.graph_pool_bytes,
        **extra,
    }
    if draft[0]:
        items["draft_weights"] = draft[0]
    if rule.basis == "sglang" and utilization is None:
        rule = replace(rule, fraction=sglang_fraction(profile.memory_bytes, max_tokens, parallel))
    items["kv_cache"] = max(0.0, _kv_bytes(rule, profile.memory_bytes, items, sum(extra.values())))
    layers = -(-model.num_layers // parallel.pp) / model.num_layers
    block = on_gpu[1] * model.kv_bytes_per_token(formats.kv, parallel.tp) * layers * block_size
    block += draft[1] * block_size
    block /= parallel.context_ranks
    blocks = int(items["kv_cache"] // block) * parallel.dp
    return MemoryBudget(name, rule, profile.memory_bytes, items, block_size, block, blocks)


def _kv_bytes(rule: MemoryRule, total: float, items: Mapping[str, float], extra: float) -> float:
    """Bytes for KV under *rule*."""
    weights = items["weights"] + items.get("draft_weights", 0.0) + extra
    fixed = weights + items["cuda_context"] + items["nccl_buffers"]
    match rule.basis:
        case "total":
            return rule.fraction * total - fixed - items["activations"]
        case "sglang":
            return rule.fraction * (total - items["cuda_context"] - items["nccl_buffers"]) - weights
        case "reserve":
            return rule.fraction * (total - fixed) - rule.reserve_bytes
        case "free":
            busy = items["activations"] + items["graph_pool"] if rule.activations_first else 0.0
            return rule.fraction * (total - fixed - busy)


def sglang_fraction(total: float, chunk: int, parallel: Parallelism) -> float:
    """``mem_fraction_static``: 1 - (512 + 1.5·max(chunk, 2048) + 2·graph_bs + tp·pp/8·1024) MiB."""
    gib, wide = total / 2**30, parallel.tp >= 4
    tiers = ((20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512), (math.inf, 512, 512))
    graph_bs = next(large if wide else small for limit, small, large in tiers if gib < limit)
    held = 512 + 1.5 * max(chunk, 2048) + 2 * graph_bs + parallel.tp * parallel.pp / 8 * 1024
    return max(0.0, 1 - held * MIB / total)


def activation_bytes(model: ModelSpec, factor: float, tp: int, max_tokens: int, max_seqs: int) -> float:
    """Peak of temporary tensors: the largest prefill, or the logits of every sequence.

    *factor* · tokens · hidden · 2 B, of which 5/11 does not shrink with tensor parallelism (11, 6.5, 5 and 5
    at 1, 2, 4 and 8 GPUs: aiconfigurator's memory model); routed experts double it.
    """
    share = max(5 / 11, (2 + 9 / tp) / 11)
    body = factor * share * max_tokens * model.hidden_size * 2 * (2 if model.is_moe else 1)
    return max(body, LOGITS_BYTES * max_seqs * model.vocab_size / tp)


def weight_bytes_per_gpu(model: ModelSpec, precision: Precision, parallel: Parallelism) -> float:
    """Weights on the fullest rank: its share of every layer of a stage, of embedding and head."""
    stage = -(-model.num_layers // parallel.pp) / model.num_layers
    layers = sum(_layer_bytes(layer, model.hidden_size, precision, parallel) for layer in model.layers)
    head = precision.lm_head.bytes * model.vocab_size * model.hidden_size / parallel.tp
    tables = 1 if model.tied_embeddings or parallel.pp > 1 else 2
    extra = precision.lm_head.bytes * (model.position_parameters + model.vision_parameters / parallel.tp)
    return layers * stage + tables * head + extra


def draft_bytes_per_gpu(draft: DraftSpec, parallel: Parallelism, kv_dtype: str) -> tuple[float, float]:
    """(weights, KV per token) that *draft* takes of each GPU, B; its projections are not cut."""
    spec, precision = draft.model, draft.precision
    extra = precision.linear.bytes * sum(gemm.parameters for gemm in draft.projections)
    table = precision.lm_head.bytes * spec.vocab_size * spec.hidden_size / parallel.tp
    if draft.heads:
        return draft.heads * (extra + table), 0.0
    weights = extra + weight_bytes_per_gpu(spec, precision, parallel)
    if not draft.own_vocabulary:
        weights -= (1 if spec.tied_embeddings else 2) * table
    return weights, spec.kv_bytes_per_token(kv_dtype, parallel.tp)


def _layer_bytes(layer: LayerSpec, h: int, precision: Precision, parallel: Parallelism) -> float:
    mlp = layer.mlp
    gemms = (*layer.attention.shard(parallel.tp).gemms(h), *mlp.shard(parallel.tp).dense_gemms(h))
    size = precision.linear.bytes * sum(gemm.parameters for gemm in gemms) + 2.0 * layer.norm_parameters
    if mlp.is_moe:
        expert = sum(gemm.parameters for gemm in mlp.expert_gemms(h))
        size += precision.experts.bytes * mlp.num_experts * expert / parallel.ranks
    return layer.count * size


def _larger(model: ModelSpec, parallel: Parallelism) -> list[int]:
    sizes, tp = [], 2 * parallel.tp
    while tp <= LARGEST_TP and model.num_attention_heads % tp == 0:
        if tp * parallel.dp % parallel.moe_ep == 0:
            sizes.append(tp)
        tp *= 2
    return sizes


def _does_not_fit(
    model: ModelSpec,
    profile: HardwareProfile,
    parallel: Parallelism,
    formats: Precision,
    budget: MemoryBudget,
    tp: int | None,
) -> str:
    held = sum(budget.items.values()) - budget.kv_cache
    advice = f"tensor parallel size {tp} would fit" if tp else f"no tensor parallel size to {LARGEST_TP} does"
    return (
        f"{model.name} in {formats.weights} does not fit {parallel.num_gpus} x {profile.name}: of "
        f"{budget.total / 1e9:.1f} GB each, weights take {budget.items['weights'] / 1e9:.1f} GB, all before "
        f"the KV cache {held / 1e9:.1f} GB ({budget.rule.source}); {advice}"
    )
