# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803  (compile-time arguments are in capitals, as is the custom)
"""Writing and copying KV blocks in Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["launch_copy_blocks", "launch_kv_write"]

CHUNK = 1024  # elements that one program moves at a time


@triton.jit
def kv_write_kernel(
    k, v, k_cache, v_cache, slot_mapping, row, k_stride, v_stride, CHUNK: tl.constexpr
):  # fmt: skip
    """Grid (token, part of its row)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = at < tl.where(slot < 0, 0, row)  # below 0: padding
    tl.store(k_cache + slot * row + at, tl.load(k + token * k_stride + at, mask=mask), mask=mask)
    tl.store(v_cache + slot * row + at, tl.load(v + token * v_stride + at, mask=mask), mask=mask)


@triton.jit
def copy_blocks_kernel(k_cache, v_cache, source, target, size, CHUNK: tl.constexpr):
    """Grid (pair, part of a block)."""
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = at < size
    src = tl.load(source + tl.program_id(0)) * size + at
    dst = tl.load(target + tl.program_id(0)) * size + at
    tl.store(k_cache + dst, tl.load(k_cache + src, mask=mask), mask=mask)
    tl.store(v_cache + dst, tl.load(v_cache + src, mask=mask), mask=mask)


def launch_kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.kv_write`."""
    if not k.shape[0]:
        return
    row = k[0].numel()
    grid = (k.shape[0], triton.cdiv(row, CHUNK))
    kv_write_kernel[grid](k, v, k_cache, v_cache, slot_mapping, row, k.stride(0), v.stride(0), CHUNK=CHUNK)


def launch_copy_blocks(k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.copy_blocks`."""
    if not src.shape[0]:
        return
    size = k_cache[0].numel()
    copy_blocks_kernel[(src.shape[0], triton.cdiv(size, CHUNK))](
        k_cache, v_cache, src, dst, size, CHUNK=CHUNK
    )
