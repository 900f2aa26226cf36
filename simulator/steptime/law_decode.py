"""Decode attention: one new token of every sequence, which reads that sequence's whole KV once.

Time follows the sum of contexts, plus a term per (sequence, KV head), the unit a thread block works on; with
tiny contexts a large batch takes far longer than the launch alone. Query heads that share a KV head read it
together, so a large group is bound by FLOPs and not by bandwidth (group 64 on an H20).
"""

from __future__ import annotations

import math

import numpy as np

from hwprofiles import DTYPES
from simulator.steptime.law_form import LEAST_LOG2, Grid, Number, OperatorLaw, at_least, log2, p_norm

__all__ = ["DecodeKernel", "DecodeLaw"]

MICRO = 1e6
"""Memory time is a coordinate in microseconds at peak bandwidth, so that a grid carries over to another
device."""

LEAST = 2.0**LEAST_LOG2
MIX = 2.0
"""Order of the norm that joins the FLOPs and the bytes of one token."""


class DecodeKernel:
    """Decode attention with the heads fixed: what a step evaluates for every batch. Call it with
    (num_seqs, sum_context[, max_context])."""

    __slots__ = (
        "floor_token",
        "grid",
        "many",
        "memory_token",
        "p",
        "per_seq",
        "per_token",
        "scale",
        "skew",
        "t0",
        "units",
    )

    def __init__(
        self, law: DecodeLaw, n_q: Number, n_kv: Number, head_dim: Number, grid: Grid | None
    ) -> None:
        c, device = law.coefficients, law.device
        moved = 2.0 * n_kv * head_dim * DTYPES[law.dtype].weight_bytes  # K and V of one token, bytes
        compute = 4.0 * n_q * head_dim / device.peak  # QK^T and PV of one token, s
        self.memory_token = moved / device.bandwidth
        self.floor_token = at_least(compute, self.memory_token)
        self.per_token = p_norm(compute / c["ec"], self.memory_token / c["eb"], MIX)
        self.units, self.per_seq = n_kv, n_kv * c["unit"]
        self.t0, self.p, self.skew = c["t0"], c["p"], c.get("skew", 0.0)
        self.grid, self.scale = grid, law.scale
        self.many = isinstance(self.units, np.ndarray)

    def smooth(self, num_seqs: Number, sum_context: Number) -> Number:
        """Launch against streaming the KV and serving the units."""
        return p_norm(self.t0, sum_context * self.per_token + num_seqs * self.per_seq, self.p)

    def __call__(self, num_seqs: Number, sum_context: Number, max_context: Number = 0.0) -> Number:
        """Seconds; *max_context*, if known, charges a batch of one long and many short sequences."""
        if isinstance(sum_context, np.ndarray) or isinstance(num_seqs, np.ndarray) or self.many:
            seconds = self.smooth(num_seqs, sum_context) * self.scale
            if self.grid is not None:
                memory = sum_context * self.memory_token * MICRO
                seconds = seconds * self.grid.factor(*np.broadcast_arrays(memory, num_seqs * self.units))
        else:
            seconds = self._one(num_seqs, sum_context)
        if self.skew:
            imbalance = at_least(num_seqs * max_context - sum_context, 0.0)
            seconds = seconds + self.skew * self.per_token * imbalance
        return at_least(seconds, sum_context * self.floor_token)

    def _one(self, num_seqs: float, sum_context: float) -> float:
        """One batch: the same formulas, spelt out, because a simulated step waits for them."""
        work = sum_context * self.per_token + num_seqs * self.per_seq
        top = work if work > self.t0 else self.t0
        p = self.p
        seconds = self.scale * top * ((work / top) ** p + (self.t0 / top) ** p) ** (1.0 / p)
        if self.grid is None:
            return float(seconds)
        memory = sum_context * self.memory_token * MICRO
        units = num_seqs * self.units
        low = math.log2(memory) if memory > LEAST else LEAST_LOG2
        return float(
            seconds * math.exp(self.grid.plane(low, math.log2(units) if units > LEAST else LEAST_LOG2))
        )


class DecodeLaw(OperatorLaw):
    """Seconds for arguments (num_seqs, sum_context, n_q, n_kv, head_dim).

    Coefficients: ``t0`` s, ``ec``, ``eb``, ``p``, ``unit`` s per sequence and KV head, ``skew`` (share of
    the imbalance num_seqs max - sum that is paid).
    """

    def kernel(self, n_q: int, n_kv: int, head_dim: int) -> DecodeKernel:
        """The law for fixed heads."""
        grid = None if self.grid is None else self.grid.fixed(log2(float(n_kv)))
        return DecodeKernel(self, n_q, n_kv, head_dim, grid)

    def smooth(
        self, num_seqs: Number, sum_context: Number, n_q: Number, n_kv: Number, head_dim: Number
    ) -> Number:
        """See `DecodeKernel.smooth`."""
        return DecodeKernel(self, n_q, n_kv, head_dim, None).smooth(num_seqs, sum_context)

    def coordinates(
        self, num_seqs: Number, sum_context: Number, n_q: Number, n_kv: Number, head_dim: Number
    ) -> tuple[Number, ...]:
        """Memory time at peak in microseconds, units, KV heads."""
        memory = DecodeKernel(self, n_q, n_kv, head_dim, None).memory_token * sum_context
        return memory * MICRO, num_seqs * n_kv, n_kv

    def floor(
        self, num_seqs: Number, sum_context: Number, n_q: Number, n_kv: Number, head_dim: Number
    ) -> Number:
        """Peak FLOPs or peak bandwidth, whichever is slower."""
        return DecodeKernel(self, n_q, n_kv, head_dim, None).floor_token * sum_context
