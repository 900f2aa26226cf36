"""Dense matrix product y[m, n] = x[m, k] W[k, n] on one device: m tokens, n outputs, k inputs."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles import DTYPES, Law
from simulator.steptime.law_form import Grid, Number, at_least, p_norm, residual_factor

__all__ = ["GemmLaw", "gemm_bytes", "gemm_flops"]

OUTPUT_BYTES = 2.0
"""Bytes of one output element: bf16, whatever the inputs."""


def gemm_flops(m: Number, n: Number, k: Number) -> Number:
    """2 m n k: a multiplication and an addition each."""
    return 2.0 * m * n * k


def gemm_bytes(m: Number, n: Number, k: Number, dtype: str) -> Number:
    """Bytes of weights, inputs and outputs, each moved once."""
    kind = DTYPES[dtype]
    return kind.weight_bytes * n * k + kind.activation_bytes * m * k + OUTPUT_BYTES * m * n


@dataclass(frozen=True, slots=True)
class GemmLaw:
    """Seconds of one product in one dtype; never below what peak FLOPs and bandwidth allow."""

    law: Law
    grid: Grid | None
    peak: float
    bandwidth: float
    scale: float = 1.0

    def __call__(self, m: Number, n: Number, k: Number) -> Number:
        c = self.law.coefficients
        compute = gemm_flops(m, n, k) / self.peak  # s
        memory = gemm_bytes(m, n, k, self.law.dtype) / self.bandwidth  # s
        smooth = c["t0"] + p_norm(compute / c["ec"], memory / c["eb"], c["p"])
        seconds = smooth * residual_factor(self.grid, m, n, k) * self.scale
        return at_least(seconds, at_least(compute, memory))
