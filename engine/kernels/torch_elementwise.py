"""Normalisation, rotation and activation, in torch: fp32 inside, rounded once to the dtype.

RMSNorm: Zhang and Sennrich 2019; RoPE: Su et al. 2021; SwiGLU: Shazeer 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["add_rms_norm", "rms_norm", "rope", "silu_mul"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `engine.kernels.interface.Kernels.rms_norm`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `engine.kernels.interface.Kernels.add_rms_norm`."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.rope`."""
    cos, sin = cos_sin_cache[positions].unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        half = cos.shape[-1]
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
        turned = first * cos - second * sin, second * cos + first * sin
        x[..., :half], x[..., half : 2 * half] = turned  # in fp32 `first` is a view of what is overwritten


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `engine.kernels.interface.Kernels.silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up
