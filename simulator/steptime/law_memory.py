"""Kernels that only move memory: element-wise, sampling, KV-cache write. t = t0 + bytes / (eb W)."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles import Law
from simulator.steptime.law_form import Number

__all__ = ["StreamLaw"]


@dataclass(frozen=True, slots=True)
class StreamLaw:
    """Seconds to stream *moved* bytes through a kernel."""

    law: Law
    bandwidth: float
    scale: float = 1.0

    def __call__(self, moved: Number) -> Number:
        c = self.law.coefficients
        floor = moved / self.bandwidth
        return (c["t0"] + floor / c["eb"]) * max(self.scale, c["eb"])
