"""What share of a device's memory each serving system gives to the KV cache.

total     fraction · total − (weights + activations + context + NCCL)   vLLM, TGI, LightLLM
free      fraction · (total − weights − ...)                            TensorRT-LLM, LMDeploy, HF
sglang    fraction · (total − context) − weights; the fraction leaves room for what its formula lists
reserve   total − weights − context − a constant                        DeepSpeed-FastGen
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from simulator.errors import UnknownNameError

__all__ = ["MEMORY_RULES", "MemoryRule", "memory_rule"]


@dataclass(frozen=True)
class MemoryRule:
    """What share a system takes; *fraction* is its default ``gpu_memory_utilization`` or equivalent."""

    basis: Literal["total", "free", "sglang", "reserve"]
    fraction: float
    source: str
    activations_first: bool = True
    reserve_bytes: float = 0.0


MEMORY_RULES: Mapping[str, MemoryRule] = MappingProxyType(
    {
        "vllm": MemoryRule("total", 0.92, "vLLM from 0.20: gpu_memory_utilization 0.92"),
        "vllm-0.19": MemoryRule("total", 0.90, "vLLM up to 0.19: gpu_memory_utilization 0.90"),
        "tgi": MemoryRule("total", 0.90, "TGI: TGI_WIGGLE_ROOM 0.90 of memory at warm-up"),
        "lightllm": MemoryRule("total", 0.90, "LightLLM: mem_fraction 0.9"),
        "trtllm": MemoryRule("free", 0.90, "TensorRT-LLM: free_gpu_memory_fraction 0.9 after weights"),
        "lmdeploy": MemoryRule(
            "free", 0.80, "LMDeploy: cache_max_entry_count 0.8 of free", activations_first=False
        ),
        "hf": MemoryRule("free", 0.90, "transformers continuous batching: 0.9 of free"),
        "sglang": MemoryRule("sglang", 0.0, "SGLang: mem_fraction_static from its formula"),
        "fastgen": MemoryRule("reserve", 1.0, "FastGen: free memory less 1e9 bytes", reserve_bytes=1e9),
        "llamacpp": MemoryRule("free", 1.0, "llama.cpp: allocated as asked; at most all free memory"),
        "static": MemoryRule("free", 1.0, "Orca, FasterTransformer: reserved from all free memory"),
    }
)


def memory_rule(system: str) -> tuple[str, MemoryRule]:
    """(name, rule) of *system*; ``vllm-0.11`` follows the rule of its version."""
    name = system.lower()
    if name.startswith("vllm-"):
        return ("vllm-0.19", MEMORY_RULES["vllm-0.19"]) if _old_vllm(name) else ("vllm", MEMORY_RULES["vllm"])
    while name not in MEMORY_RULES:
        if "-" not in name:
            raise UnknownNameError("memory rule", system, MEMORY_RULES)
        name = name.rsplit("-", 1)[0]
    return name, MEMORY_RULES[name]


def _old_vllm(name: str) -> bool:
    version = name.removeprefix("vllm-").split(".")
    if not all(part.isdigit() for part in version[:2]):
        return True  # vllm-v0
    return tuple(map(int, version[:2])) < (0, 20)
