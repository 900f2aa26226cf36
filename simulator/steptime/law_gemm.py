"""Dense matrix product y[m, n] = x[m, k] W[k, n] on one device: m tokens, n outputs, k inputs.

A kernel cuts the output into tiles and deals them to the SMs; the last *wave* may be nearly empty (112
tiles on 108 SMs take two). Libraries pick among tile sizes, large ones being more efficient when they fill
the device. The law takes the best of seven sizes, softly, with a fitted efficiency each, and lets a fitted
part *wave* of the quantisation through (stream-K and split-K kernels escape some of it).
"""

from __future__ import annotations

from hwprofiles import DTYPES
from simulator.steptime.law_form import Number, OperatorLaw, at_least, ceil, p_norm

__all__ = ["GemmLaw", "gemm_bytes", "gemm_flops"]

OUTPUT_BYTES = 2.0
"""Bytes of one output element: bf16, whatever the inputs."""

TILES = (
    (128, 256, "ec_256"),
    (256, 128, "ec_256"),
    (128, 128, "ec_128"),
    (128, 64, "ec_64"),
    (64, 128, "ec_64"),
    (64, 64, "ec_32"),
    (16, 128, "ec_32"),  # decode: the product is transposed, so that few tokens fill the narrow side
)
"""Rows, columns and the coefficient that holds the efficiency (named after the smaller half of the area)."""

SOFTNESS = 8.0
"""Order of the power mean that stands for "the best tile"; a library does not always find it."""


def gemm_flops(m: Number, n: Number, k: Number) -> Number:
    """2 m n k: a multiplication and an addition each."""
    return 2.0 * m * n * k


def gemm_bytes(m: Number, n: Number, k: Number, dtype: str) -> Number:
    """Bytes of weights, inputs and outputs, each moved once."""
    kind = DTYPES[dtype]
    return kind.weight_bytes * n * k + kind.activation_bytes * m * k + OUTPUT_BYTES * m * n


class GemmLaw(OperatorLaw):
    """Seconds of one product in one dtype, for arguments (m, n, k).

    Coefficients: ``t0`` s, ``eb``, ``p``, ``wave`` (0: no quantisation, 1: whole waves), ``ec_256 ec_128
    ec_64 ec_32`` per tile size.
    """

    def smooth(self, m: Number, n: Number, k: Number) -> Number:
        """Launch, then compute by the best tile against memory."""
        c = self.coefficients
        compute = gemm_flops(m, n, k) / self.device.peak * self._slowdown(m, n)
        memory = gemm_bytes(m, n, k, self.dtype) / self.device.bandwidth
        return c["t0"] + p_norm(compute, memory / c["eb"], c["p"])

    def _slowdown(self, m: Number, n: Number) -> Number:
        """Factor over peak: padding, waves and efficiency of the best tile."""
        c, sms = self.coefficients, self.device.num_sms
        total = 0.0
        for rows, columns, name in TILES:
            tiles = ceil(m / rows) * ceil(n / columns)
            padding = tiles * (rows * columns) / (m * n)
            quantum = ceil(tiles / sms) * sms / tiles
            total = total + (padding * quantum ** c["wave"] / c[name]) ** -SOFTNESS
        return total ** (-1.0 / SOFTNESS)

    def coordinates(self, m: Number, n: Number, k: Number) -> tuple[Number, ...]:
        """The shape itself."""
        return m, n, k

    def floor(self, m: Number, n: Number, k: Number) -> Number:
        """Peak FLOPs or peak bandwidth, whichever is slower."""
        compute = gemm_flops(m, n, k) / self.device.peak
        return at_least(compute, gemm_bytes(m, n, k, self.dtype) / self.device.bandwidth)
