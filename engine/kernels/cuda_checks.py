"""What the CUDA kernels would misread, refused before a launch in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from simulator.errors import ConfigurationError

__all__ = ["HEAD_DIMS", "MAX_GROUP", "check_attention", "check_pinned", "check_rows"]

HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 16
WORD = 16  # bytes of an asynchronous copy
TENSOR_CORE_DTYPES = (torch.bfloat16, torch.float16)


def check_attention(out: Tensor, q: Tensor, k_cache: Tensor, block_table: Tensor, *lengths: Tensor) -> None:
    """Raise where the CUDA attention kernels have no instance for these shapes, or would misread a tensor."""
    heads, dim = q.shape[-2:]
    group = heads // k_cache.shape[2]
    if dim not in HEAD_DIMS:
        raise ConfigurationError(f"head_dim {dim}: the CUDA kernels have {', '.join(map(str, HEAD_DIMS))}")
    if group > MAX_GROUP:
        raise ConfigurationError(f"{group} query heads per KV head: the CUDA kernels take up to {MAX_GROUP}")
    if q.dtype not in TENSOR_CORE_DTYPES or k_cache.dtype != q.dtype:
        raise ConfigurationError(f"q {q.dtype}, cache {k_cache.dtype}: must both be bfloat16 or both float16")
    for name, t in (("block table", block_table), *(("lengths", one) for one in lengths)):
        if t.dtype != torch.int32 or t.stride(-1) != 1:
            raise ConfigurationError(f"{name} {t.dtype}, stride {t.stride(-1)}: must be int32, in a row")
    if q.stride(1) != dim or not (out.is_contiguous() and k_cache.is_contiguous()):
        raise ConfigurationError("attention: a token's heads, the result and the cache must be contiguous")
    if q.data_ptr() % WORD or q.stride(0) * q.element_size() % WORD:
        raise ConfigurationError(
            f"q at address {q.data_ptr():#x}, {q.stride(0)} elements apart: must be aligned to {WORD} bytes"
        )


def check_rows(*tensors: Tensor) -> None:
    """Raise where a token's heads ``[T, heads, dim]`` do not lie side by side."""
    for t in tensors:
        if t.stride(2) != 1 or t.stride(1) != t.shape[2]:
            raise ConfigurationError(f"strides {t.stride()}: a token's heads must be contiguous")


def check_pinned(*tensors: Tensor) -> None:
    """Raise for host memory that a kernel cannot reach."""
    if torch.cuda.is_available() and any(t.device.type == "cpu" and not t.is_pinned() for t in tensors):
        raise ConfigurationError("swap: the host cache must be in pinned memory")
