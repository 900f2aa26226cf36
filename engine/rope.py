"""Frequencies of the rotary embedding (Su et al. 2021) and how they are stretched to longer contexts.

``linear``: positions divided by a factor (Chen et al. 2023). ``llama3``: long wavelengths divided, short
ones kept, a smooth ramp between them (Llama 3.1's model card). ``yarn``: the ramp over dimensions, and
attention scaled by 0.1 ln(s) + 1 (Peng et al. 2023, eq. 22 and sec. 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from simulator.errors import UnknownNameError

__all__ = ["cos_sin_cache"]

Rope = Mapping[str, Any]


def cos_sin_cache(rope: Rope, head_dim: int, max_position: int, device: torch.device | str = "cpu") -> Tensor:
    """fp32 ``[max_position, rotary_dim]``: the cosines of all frequencies, then their sines."""
    kind = rope["rope_type"]
    if kind not in STRETCHES:
        raise UnknownNameError("rope_type", kind, STRETCHES)
    rotary = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    inverse, factor = STRETCHES[kind](rope, rotary)
    angle = torch.arange(max_position, dtype=torch.float32)[:, None] * inverse[None, :]
    return (torch.cat((angle.cos(), angle.sin()), dim=-1) * factor).to(device)


def _inverse(rope: Rope, dim: int) -> Tensor:
    """1 / theta^(2 i / dim), radians per token."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    return 1.0 / torch.pow(float(rope["rope_theta"]), exponent)


def _default(rope: Rope, dim: int) -> tuple[Tensor, float]:
    return _inverse(rope, dim), 1.0


def _linear(rope: Rope, dim: int) -> tuple[Tensor, float]:
    return _inverse(rope, dim) / rope["factor"], 1.0


def _llama3(rope: Rope, dim: int) -> tuple[Tensor, float]:
    inverse = _inverse(rope, dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)  # within the original context
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * inverse / factor + ramp * inverse, 1.0


def _yarn(rope: Rope, dim: int) -> tuple[Tensor, float]:
    inverse, factor = _inverse(rope, dim), rope["factor"]
    original, theta = rope["original_max_position_embeddings"], rope["rope_theta"]

    def dimension(turns: float) -> float:
        """The dimension whose wavelength fits *turns* times into the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    attention = rope.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return inverse / factor * ramp + inverse * (1 - ramp), attention


STRETCHES: dict[str, Callable[[Rope, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
