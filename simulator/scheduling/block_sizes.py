"""Which sizes of a KV block a system's attention kernels take.

A kernel walks the cache in tiles, so a block must be whole tiles or one of the sizes that it was compiled for; the
engine refuses any other when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import ConfigurationError

__all__ = [
    "FLASH_ATTENTION",
    "LMDEPLOY_PYTORCH",
    "PAGED_ATTENTION",
    "TENSORRT_LLM",
    "TURBOMIND",
    "BlockSizes",
]


@dataclass(frozen=True)
class BlockSizes:
    """The sizes that *option* may have: *choices*, or from *least* on what *multiple* divides, or powers of two."""

    source: str
    option: str = "block_size"
    choices: tuple[int, ...] = ()
    multiple: int = 1
    powers_of_two: bool = False
    least: int = 1

    def allows(self, size: int) -> bool:
        """Whether a block of *size* tokens can be."""
        if self.choices:
            return size in self.choices
        power = size & (size - 1) == 0
        return size >= self.least and size % self.multiple == 0 and (power or not self.powers_of_two)

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.powers_of_two:
            return f"a power of two from {self.least}"
        return f"a multiple of {self.multiple}"

    def check(self, system: str, size: object) -> None:
        """Raise `ConfigurationError` where *system* would refuse *size*."""
        if not isinstance(size, int) or not self.allows(size):
            raise ConfigurationError(
                f"{self.option} {size}: {system} needs {self}, the sizes of its attention kernels ({self.source})"
            )


FLASH_ATTENTION = BlockSizes(
    "vLLM v1/attention/backends/flash_attn.py, get_kv_cache_shape; Triton's and ROCm's backends ask for the same",
    multiple=16,
)
PAGED_ATTENTION = BlockSizes(
    "vLLM csrc/attention/attention_kernels.cu; on CUDA devices --block-size is at most 32",
    choices=(8, 16, 32),
)
LMDEPLOY_PYTORCH = BlockSizes(
    "LMDeploy messages.py, PytorchEngineConfig.__post_init__", powers_of_two=True, least=16
)
TURBOMIND = BlockSizes(
    "LMDeploy --cache-block-seq-len, compute capability 8.0 and above", multiple=32, least=32
)
TENSORRT_LLM = BlockSizes(
    "TensorRT-LLM docs/source/advanced/kv-cache-reuse.md",
    option="tokens_per_block",
    powers_of_two=True,
    least=2,
)
