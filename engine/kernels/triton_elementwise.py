# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803  (compile-time arguments are in capitals, as is the custom)
"""RMSNorm with residual, rotary embedding and SiLU-multiply in Triton: fp32 inside, one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_rms_norm", "rms_norm", "rope", "silu_mul"]


@triton.jit
def rms_norm_kernel(
    out, total, x, residual, weight, eps, dim, inner, outer_stride, inner_stride,
    ADD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Grid (row); row r of x starts at ``r // inner * outer_stride + r % inner * inner_stride``."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    mask = at < dim
    value = tl.load(x + row // inner * outer_stride + row % inner * inner_stride + at, mask=mask, other=0.0)
    if ADD:
        other = tl.load(residual + row * dim + at, mask=mask, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + row * dim + at, value, mask=mask)
    wide = value.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / dim + eps)
    normed = (wide * inverse).to(
        x.dtype.element_ty
    )  # rounded before the weight, as the models' own code does
    scale = tl.load(weight + at, mask=mask, other=0.0)
    result = normed.to(tl.float32) * scale.to(tl.float32)
    tl.store(out + row * dim + at, result.to(x.dtype.element_ty), mask=mask)


@triton.jit
def rope_kernel(x, positions, cos_sin, heads, dim, half, stride, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Grid (token): all heads of one tensor, in place."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    at = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)
    cosine = tl.load(cos_sin + position * 2 * half + at, mask=at < half, other=0.0)[None, :]
    sine = tl.load(cos_sin + position * 2 * half + half + at, mask=at < half, other=0.0)[None, :]
    mask = (head < heads)[:, None] & (at < half)[None, :]
    place = x + token * stride + head[:, None] * dim + at[None, :]
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (first * cosine - second * sine).to(x.dtype.element_ty), mask=mask)
    tl.store(place + half, (second * cosine + first * sine).to(x.dtype.element_ty), mask=mask)


@triton.jit
def silu_mul_kernel(out, gate_up, features, stride, CHUNK: tl.constexpr):
    """Grid (row, part of it)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = at < features
    gate = tl.load(gate_up + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + features + at, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * features + at, result.to(out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `engine.kernels.interface.Kernels.rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_rms_norm(out, out, x, x, weight, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `engine.kernels.interface.Kernels.add_rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    _launch_rms_norm(out, total, x, residual.contiguous(), weight, eps, add=True)
    return out, total


def _launch_rms_norm(
    out: Tensor, total: Tensor, x: Tensor, residual: Tensor, weight: Tensor, eps: float, add: bool
) -> None:
    x = x if x.dim() in (2, 3) and x.stride(-1) == 1 else x.reshape(-1, x.shape[-1]).contiguous()
    dim = x.shape[-1]
    inner, inner_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    width = triton.next_power_of_2(dim)
    rows = x.numel() // dim
    if rows:
        rms_norm_kernel[(rows,)](
            out, total, x, residual, weight, eps, dim, inner, x.stride(0), inner_stride, ADD=add, WIDTH=width,
            num_warps=min(8, max(1, width // 512)),
        )  # fmt: skip


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.rope`."""
    half = cos_sin_cache.shape[1] // 2
    for x in (q, k):
        tokens, heads, dim = x.shape
        if tokens:
            rope_kernel[(tokens,)](
                x, positions, cos_sin_cache, heads, dim, half, x.stride(0),
                HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(half),
            )  # fmt: skip


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `engine.kernels.interface.Kernels.silu_mul`."""
    features = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * features)
    out = torch.empty((*gate_up.shape[:-1], features), dtype=gate_up.dtype, device=gate_up.device)
    if rows.shape[0]:
        grid = (rows.shape[0], triton.cdiv(features, 1024))
        silu_mul_kernel[grid](out, rows, features, rows.stride(0), CHUNK=1024)
    return out
