"""Weights stored in fewer bits than they are computed with.

Weight-only int8 and int4 (as in GPTQ and AWQ checkpoints, here rounded to nearest): each run of
`group_size` weights of an output row shares one scale, and the product is computed in the activations'
dtype. It saves the bytes a decode step reads, not its FLOPs. fp8 (E4M3) keeps one scale per output row and
is multiplied as fp8 where the device can (`torch._scaled_mm`, compute capability 8.9 and later).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulator.errors import ConfigurationError, UnknownNameError

__all__ = ["FORMATS", "QuantizedWeight", "dequantize", "quantize"]

FORMATS = ("fp8", "int4", "int8")
FP8_MAX = 448.0  # largest finite E4M3 number


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight ``[N, K]``: *data* int8 ``[N, K]``, two int4 to a byte uint8 ``[N, K / 2]`` (even column
    low), or fp8 ``[N, K]``; *scales* ``[N, K / group_size]`` in the activations' dtype, for fp8 fp32 ``[N,
    1]``."""

    format: str
    data: Tensor
    scales: Tensor
    shape: tuple[int, int]
    group_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scales))

    def to(self, device: torch.device | str) -> QuantizedWeight:
        return QuantizedWeight(
            self.format, self.data.to(device), self.scales.to(device), self.shape, self.group_size
        )


def quantize(weight: Tensor, format: str, group_size: int = 128) -> QuantizedWeight:
    """Round a weight ``[N, K]`` to the nearest representable; K must be a multiple of *group_size* (int
    formats)."""
    if format not in FORMATS:
        raise UnknownNameError("weight format", format, FORMATS)
    n, k = weight.shape
    if format == "fp8":
        return _quantize_fp8(weight)
    if k % group_size or (format == "int4" and group_size % 2):
        raise ConfigurationError(
            f"{format}: {k} input features are not a multiple of group_size {group_size}"
        )
    largest = 127 if format == "int8" else 7
    groups = weight.float().reshape(n, k // group_size, group_size)
    # The scale is rounded to its stored dtype first, so that rounding sees what will be multiplied.
    scales = (groups.abs().amax(dim=-1).clamp_min(1e-8) / largest).to(weight.dtype)
    steps = (groups / scales.float().unsqueeze(-1)).round().clamp(-largest, largest).to(torch.int8)
    steps = steps.reshape(n, k)
    return QuantizedWeight(
        format, steps if format == "int8" else _pack_int4(steps), scales, (n, k), group_size
    )


def _quantize_fp8(weight: Tensor) -> QuantizedWeight:
    n, k = weight.shape
    scales = weight.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / FP8_MAX
    data = (weight.float() / scales).to(torch.float8_e4m3fn)
    return QuantizedWeight("fp8", data, scales, (n, k), k)


def _pack_int4(steps: Tensor) -> Tensor:
    unsigned = (steps + 8).to(torch.uint8)  # 1..15, 8 is zero
    return unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)


def _unpack_int4(packed: Tensor) -> Tensor:
    pairs = torch.stack((packed & 0xF, packed >> 4), dim=-1)
    return pairs.flatten(1).to(torch.int8) - 8


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The weight ``[N, K]`` in *dtype*."""
    if weight.format == "fp8":
        return (weight.data.float() * weight.scales).to(dtype)
    steps = weight.data if weight.format == "int8" else _unpack_int4(weight.data)
    n, k = weight.shape
    groups = steps.reshape(n, k // weight.group_size, weight.group_size)
    return (groups.to(dtype) * weight.scales.to(dtype).unsqueeze(-1)).reshape(n, k)
