"""Switches that contradict each other, the system or the model: one line that says why."""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.models import ModelSpec
from simulator.scheduling.system import System
from simulator.steptime.parallelism import Parallelism
from simulator.techniques.options import Techniques

__all__ = ["check", "check_context_parallel", "check_speculation"]


def check(techniques: Techniques, system: System) -> None:
    """Raise `ConfigurationError` for the first switch that cannot be."""
    _check_guided(techniques)
    _check_cache(techniques, system)
    _check_adapters(techniques, system)
    _check_context_parallel(techniques, system)


def check_context_parallel(model: ModelSpec, parallel: Parallelism) -> None:
    """Decode context parallelism spreads copies of KV heads: there are tp / KV heads of each (MLA: tp)."""
    copies = max(parallel.tp if model.attention.latent else parallel.tp // model.num_kv_heads, 1)
    if copies % parallel.dcp:
        raise ConfigurationError(
            f"decode_context_parallel_size {parallel.dcp}: must divide the copies of a KV head, of which "
            f"tensor_parallel_size {parallel.tp} makes {copies} for {model.name}"
        )


def check_speculation(techniques: Techniques) -> None:
    """What has a policy of its own does not go with speculation, which has one too."""
    for name in ("enable_lora", "kv_offloading_size"):
        if getattr(techniques, name):
            raise ConfigurationError(f"{name}: not modelled together with speculation")
    if techniques.kv_cache is False:
        raise ConfigurationError("kv_cache false: drafts are checked against keys and values that are kept")


def _check_guided(techniques: Techniques) -> None:
    if techniques.guided_decoding_backend is not None and techniques.guided_decoding is None:
        raise ConfigurationError(
            f"guided_decoding_backend {techniques.guided_decoding_backend}: needs guided_decoding, the share of "
            "requests that it constrains"
        )


def _check_cache(techniques: Techniques, system: System) -> None:
    if techniques.kv_cache is False and system.uncached is None:
        raise ConfigurationError(
            f"kv_cache false: {system.name} is built around its KV cache; hf-static can do without"
        )
    if techniques.kv_offloading_size is not None and "kv_offloading" not in system.techniques:
        raise ConfigurationError(
            f"kv_offloading_size {techniques.kv_offloading_size:g}: {system.name} has no host tier for KV; vllm has"
        )


def _check_adapters(techniques: Techniques, system: System) -> None:
    for name in ("max_loras", "max_lora_rank"):
        value = getattr(techniques, name)
        if value is not None and not techniques.enable_lora:
            raise ConfigurationError(f"{name} {value}: needs enable_lora")
    if techniques.enable_lora and "lora" not in system.techniques:
        raise ConfigurationError(f"enable_lora: adapters are not modelled for {system.name}; vllm has them")


def _check_context_parallel(techniques: Techniques, system: System) -> None:
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        size = getattr(techniques, name) or 1
        if size > 1 and "context_parallel" not in system.techniques:
            raise ConfigurationError(f"{name} {size}: {system.name} has no context parallelism; vllm has")
        if size > 1 and techniques.flash_attention is False:
            raise ConfigurationError(
                f"{name} {size}: parts are merged by what flash_attention keeps; it is off"
            )
