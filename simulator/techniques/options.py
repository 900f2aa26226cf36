"""The switches: what a user states to have one technique on or off. None leaves the system as it is.

What each costs and gains, with formula and source, is in ``docs/techniques``. Other techniques are options of their
own: formats (``dtype``), parallelism, ``enable_prefix_caching``, ``enable_chunked_prefill``, ``async_scheduling``,
and the system, which decides how requests are batched and where their KV lies.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MAX_LORAS", "MAX_LORA_RANK", "Techniques"]

MAX_LORAS, MAX_LORA_RANK = 1, 16
"""vLLM's defaults (config/lora.py)."""


class Techniques(BaseModel):
    """Switches with the names of vLLM's flags where it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flash_attention: bool | None = None
    """False: every layer writes its attention scores to memory."""
    kernel_fusion: bool | None = None
    """False: norms, rotary embedding and activation run as PyTorch's single operations."""
    enforce_eager: bool | None = None
    """True: no CUDA graphs, every kernel is launched by the CPU."""
    kv_cache: bool | None = None
    """False: every step computes the whole context again."""
    attention: str | None = Field(None, pattern=r"^(mha|mqa|mla|gqa-[1-9]\d*)$")
    """What if the model had ``mha``, ``mqa`` or ``gqa-8`` (with 8 KV heads)?"""
    sampling: Literal["greedy", "random", "top-p"] | None = None
    """``top-p`` is top-k and top-p by sorting."""
    guided_decoding: float | None = Field(None, ge=0, le=1)
    """Share of the requests whose output a grammar or JSON schema constrains."""
    guided_decoding_backend: Literal["xgrammar", "gbnf"] | None = None
    enable_lora: bool | None = None
    max_loras: int | None = Field(None, ge=1)
    """Distinct adapters in a batch, and slots for them in GPU memory."""
    max_lora_rank: int | None = Field(None, ge=1)
    kv_offloading_size: float | None = Field(None, gt=0)
    """GiB of host memory for KV blocks that left the GPU, all ranks of a replica together."""
    decode_context_parallel_size: int | None = Field(None, ge=1, le=1024)
    """Ranks of a tensor parallel group over which the KV of a sequence is spread."""
    prefill_context_parallel_size: int | None = Field(None, ge=1, le=1024)
    """Further GPUs over which the tokens of a prompt, and their KV, are spread."""

    def switched(self) -> list[str]:
        """One line with the switches that were stated; none where none was."""
        stated = ((name, getattr(self, name)) for name in Techniques.model_fields)
        words = [f"{name} {str(value).lower()}" for name, value in stated if value is not None]
        return [f"techniques: {', '.join(words)}"] if words else []
