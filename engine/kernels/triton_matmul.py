# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803  (compile-time arguments are in capitals, as is the custom)
"""Products with weights of int8 and int4 in Triton: unpacked in registers, so that memory moves the few
bits only.

For few rows (a decode step), where the product is bound by reading the weight. Each group's partial product
is scaled in fp32. An int4 byte holds an even column (low half) and the odd one after it, which meet the
even and odd columns of *x*.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.weights import QuantizedWeight

__all__ = ["MAX_ROWS", "quantized_matmul"]

MAX_ROWS = 64  # beyond, unpacking once and multiplying by cuBLAS reads less in total


@triton.jit
def int8_kernel(
    out, x, data, scales, rows, n, k, x_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (columns of the result, rows)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, GROUP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(k // GROUP):
        here = group * GROUP + at
        a = tl.load(x + row[:, None] * x_stride + here[None, :], mask=(row < rows)[:, None], other=0.0)
        place = data + column.to(tl.int64)[:, None] * k + here[None, :]
        w = tl.load(place, mask=(column < n)[:, None], other=0).to(a.dtype)
        scale = tl.load(scales + column * (k // GROUP) + group, mask=column < n, other=0.0).to(tl.float32)
        total += tl.dot(a, tl.trans(w), input_precision="ieee") * scale[None, :]
    inside = (row < rows)[:, None] & (column < n)[None, :]
    tl.store(out + row[:, None] * n + column[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def int4_kernel(
    out, x, data, scales, rows, n, k, x_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (columns of the result, rows)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, GROUP // 2)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(k // GROUP):
        here = group * (GROUP // 2) + at
        even = x + row[:, None] * x_stride + 2 * here[None, :]
        a = tl.load(even, mask=(row < rows)[:, None], other=0.0)
        b = tl.load(even + 1, mask=(row < rows)[:, None], other=0.0)
        place = data + column.to(tl.int64)[:, None] * (k // 2) + here[None, :]
        packed = tl.load(place, mask=(column < n)[:, None], other=0)
        low = ((packed & 0xF).to(tl.int8) - 8).to(a.dtype)
        high = ((packed >> 4).to(tl.int8) - 8).to(a.dtype)
        scale = tl.load(scales + column * (k // GROUP) + group, mask=column < n, other=0.0).to(tl.float32)
        part = tl.dot(a, tl.trans(low), input_precision="ieee")
        part += tl.dot(b, tl.trans(high), input_precision="ieee")
        total += part * scale[None, :]
    inside = (row < rows)[:, None] & (column < n)[None, :]
    tl.store(out + row[:, None] * n + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def quantized_matmul(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for *x* ``[..., K]`` and an int8 or int4 weight."""
    n, k = weight.shape
    flat = x.reshape(-1, k)
    rows = flat.shape[0]
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    block = min(64, max(16, triton.next_power_of_2(max(rows, 1))))
    kernel = int8_kernel if weight.format == "int8" else int4_kernel
    if rows:
        kernel[(triton.cdiv(n, 64), triton.cdiv(rows, block))](
            out, flat, weight.data, weight.scales, rows, n, k, flat.stride(0),
            ROWS=block, COLUMNS=64, GROUP=weight.group_size,
        )  # fmt: skip
    result = out.reshape(*x.shape[:-1], n)
    return result if bias is None else result + bias
