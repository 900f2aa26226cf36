"""What of a model is not on the GPU, and at what rates that part is read and computed.

Data for the step-time model (`simulator.steptime.offload`); it lives here so that policies can state it without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.errors import ConfigurationError

__all__ = ["Offload"]


@dataclass(frozen=True)
class Offload:
    """What is not on the GPU and what it costs a forward.

    *weights_share* and *kv_share* of all bytes are on the GPU, which does *device_share* of the work. *weight_bytes*
    are read over *bandwidth* (B/s), of which a token touches the share *touched*; *flops_per_token* are done at
    *peak_flops* (FLOP/s); *kv_bytes_per_token* is the KV elsewhere, per token of context. *overlapped*: both parts
    at once. *limits* are arguments of the policy that follow from it.
    """

    weight_bytes: float
    bandwidth: float
    overlapped: bool
    source: str
    weights_share: float = 1.0
    kv_share: float = 1.0
    device_share: float = 1.0
    touched: float = 1.0
    flops_per_token: float = 0.0
    peak_flops: float = float("inf")
    kv_bytes_per_token: float = 0.0
    limits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weights_share", "kv_share", "device_share", "touched"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} {getattr(self, name)}: must be from 0 to 1")
        for name in ("bandwidth", "peak_flops"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} {getattr(self, name)}: must be above 0")

    def seconds(self, tokens: int, context: int) -> float:
        """The other part of a forward of *tokens* new tokens that attend to *context* tokens in sum."""
        union = 1.0 - (1.0 - self.touched) ** tokens
        work = max(
            self.weight_bytes * union / self.bandwidth,
            tokens * self.flops_per_token / self.peak_flops,
        )
        return work + self.kv_bytes_per_token * context / self.bandwidth
