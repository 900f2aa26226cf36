"""Kernels that only move memory: element-wise, sampling, KV-cache write. t = t0 + bytes / (eb W)."""

from __future__ import annotations

from simulator.steptime.law_form import Number, OperatorLaw

__all__ = ["StreamLaw"]


class StreamLaw(OperatorLaw):
    """Seconds for argument (bytes moved). Coefficients: ``t0`` s, ``eb``."""

    def smooth(self, moved: Number) -> Number:
        """Launch and streaming."""
        return self.coefficients["t0"] + moved / (self.coefficients["eb"] * self.device.bandwidth)

    def coordinates(self, moved: Number) -> tuple[Number, ...]:
        """The bytes."""
        return (moved,)

    def floor(self, moved: Number) -> Number:
        """Peak bandwidth."""
        return moved / self.device.bandwidth
