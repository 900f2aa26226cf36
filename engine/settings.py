"""What an engine is made of: model, number formats, device, sizes; the names are vLLM's flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import DecoderConfig
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.models import ModelSpec, load_model

__all__ = ["DTYPES", "EngineSettings"]

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class EngineSettings:
    """*model* is a Hugging Face directory, a `DecoderConfig`, or a name of the zoo (random weights).

    ``dtype="auto"`` is the model's own on a GPU and float32 on a CPU. *num_gpu_blocks* None: what memory
    allows within *gpu_memory_utilization* of the device (on a CPU *cpu_cache_bytes*). *load_format*
    ``dummy`` draws random weights even where a checkpoint exists.
    """

    model: str | Path | DecoderConfig | ModelSpec
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    quantization: str | None = None
    load_format: str = "auto"
    block_size: int = 16
    num_gpu_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    cpu_cache_bytes: int = 256 * 1024 * 1024
    swap_space_blocks: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    seed: int = 0
    num_speculative_tokens: int = 0
    """Tokens drafted at a time; by *draft_model*, or without one from the text's own n-grams."""
    draft_model: str | Path | DecoderConfig | ModelSpec | None = None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UnknownNameError("device", self.device, DEVICES)
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, ["auto", *DTYPES])
        if self.load_format not in ("auto", "dummy"):
            raise UnknownNameError("load_format", self.load_format, ["auto", "dummy"])
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.num_speculative_tokens and self.tensor_parallel_size > 1:
            raise ConfigurationError("num_speculative_tokens needs tensor_parallel_size 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigurationError(
                f"gpu_memory_utilization {self.gpu_memory_utilization}: must be in (0, 1]"
            )

    @property
    def num_scratch_blocks(self) -> int:
        """Blocks for drafted tokens: room for a draft behind every sequence."""
        drafted = self.num_speculative_tokens
        return self.max_num_seqs * (-(-drafted // self.block_size) + 1) if drafted else 0

    @property
    def directory(self) -> Path | None:
        """The Hugging Face directory, where the model is one."""
        if isinstance(self.model, (str, Path)) and Path(self.model).is_dir():
            return Path(self.model)
        return None

    @property
    def has_checkpoint(self) -> bool:
        """Whether weights are read and not drawn."""
        directory = self.directory
        return self.load_format == "auto" and directory is not None and any(directory.glob("*.safetensors"))

    @property
    def name(self) -> str:
        """The model's name, for people."""
        if isinstance(self.model, DecoderConfig):
            return self.model.family
        if isinstance(self.model, ModelSpec):
            return self.model.name
        return Path(self.model).name

    def decoder_config(self) -> DecoderConfig:
        """Shapes and constants of the model."""
        if isinstance(self.model, DecoderConfig):
            return self.model
        if self.directory is not None:
            return DecoderConfig.from_directory(self.directory)
        return DecoderConfig.from_spec(
            load_model(self.model) if isinstance(self.model, (str, Path)) else self.model
        )

    def torch_device(self, rank: int = 0) -> torch.device:
        """The device of a rank."""
        kind = self.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(f"cuda:{rank}") if kind == "cuda" else torch.device(kind)

    def torch_dtype(self, config: DecoderConfig) -> torch.dtype:
        """The number format that the model is computed in."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        if self.torch_device().type == "cpu":
            return torch.float32
        return DTYPES.get(config.dtype, torch.bfloat16)

    def model_len(self, config: DecoderConfig) -> int:
        """Tokens a sequence may have."""
        if self.max_model_len is None:
            return config.max_position
        if not 1 <= self.max_model_len <= config.max_position:
            raise ConfigurationError(
                f"max_model_len {self.max_model_len}: must be between 1 and the model's {config.max_position}"
            )
        return self.max_model_len
