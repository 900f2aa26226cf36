"""The attention calls that the kernel benchmark times, and what each must move and compute."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CPU_SHAPES", "GPU_SHAPES", "Shape"]


@dataclass(frozen=True)
class Shape:
    """One attention call: *contexts* tokens per sequence, the last *chunk* of them new."""

    contexts: tuple[int, ...]
    chunk: int = 1
    kv_heads: int = 8
    group: int = 4
    dim: int = 128
    block_size: int = 16

    @property
    def operator(self) -> str:
        return "decode_attention" if self.chunk == 1 else "prefill_attention"

    @property
    def name(self) -> str:
        alike = len(set(self.contexts)) == 1
        lengths = str(self.contexts[0]) if alike else f"{min(self.contexts)}..{max(self.contexts)}"
        chunk = "" if self.chunk == 1 else f" chunk {self.chunk}"
        return f"{len(self.contexts)} x {lengths}{chunk}, {self.kv_heads}x{self.group} heads of {self.dim}"

    def kv_bytes(self, element: int) -> int:
        """Bytes of K and V that the call must read."""
        return 2 * sum(self.contexts) * self.kv_heads * self.dim * element

    def bytes(self, element: int) -> int:
        """K and V, queries read and outputs written."""
        rows = len(self.contexts) * self.chunk * self.kv_heads * self.group
        return self.kv_bytes(element) + 2 * rows * self.dim * element

    def flops(self) -> int:
        """Two products of 2 FLOPs per visible (query, key) pair, head and dimension."""
        pairs = sum(self.chunk * context - self.chunk * (self.chunk - 1) // 2 for context in self.contexts)
        return 4 * pairs * self.kv_heads * self.group * self.dim


SKEWED = tuple(16_384 if i % 8 == 0 else 1024 for i in range(64))
GPU_SHAPES = (
    Shape((8192,) * 64),
    Shape((8192,) * 64, group=8),
    Shape((8192,) * 64, group=1),
    Shape((8192,) * 128, dim=64),
    Shape((1024,) * 256),
    Shape((4096,) * 16),
    Shape((131_072,)),
    Shape(SKEWED),
    Shape((8192,), chunk=8192),
    Shape((2048,) * 4, chunk=2048),
    Shape((8192,), chunk=2048),
    Shape((8192,), chunk=8192, dim=64),
    Shape((16_384,), chunk=512),
)
CPU_SHAPES = (
    Shape((64, 64), kv_heads=2, group=2, dim=64),
    Shape((64, 20), kv_heads=2, group=2, dim=64),
    Shape((32, 32), chunk=32, kv_heads=2, group=2, dim=64),
)
