"""The shared library's C interface, for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch

__all__ = ["DTYPE_CODES", "Library"]

DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

P, I, L, F = c_void_p, c_int, c_int64, c_float
SIGNATURES: dict[str, list[type]] = {
    # out, partial, log_sum, q, k_cache, v_cache, block_table, context_lens, scale, dtype, batch, heads, kv_heads,
    # head_dim, block_size, max_blocks, q_stride, num_splits, min_chunk, sliding_window, stream
    "decode_attention": [*[P] * 8, F, *[I] * 7, L, I, I, I, P],
}


class Library:
    """The loaded library; each call raises where the launch was refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        for name, arguments in SIGNATURES.items():
            function = getattr(self._functions, name)
            function.argtypes, function.restype = arguments, c_int

    def call(self, name: str, *arguments: object) -> None:
        """Launch; raises `RuntimeError` with CUDA's error number where that fails."""
        code = getattr(self._functions, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: CUDA error {code}")
