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
        self.t0, self.p, self.skew = c["t0"], c["p"], c["skew"]
        self.grid, self.scale = grid, law.scale

    def work(self, num_seqs: Number, sum_context: Number, max_context: Number) -> Number:
        """Seconds of streaming the KV, serving the units and waiting for the longest."""
        work = sum_context * self.per_token + num_seqs * self.per_seq
        imbalance = num_seqs * max_context - sum_context
        return work + self.skew * self.per_token * at_least(imbalance, 0.0)

    def __call__(self, num_seqs: Number, sum_context: Number, max_context: Number = 0.0) -> Number:
        """Seconds; *max_context*, if known, charges a batch of one long and many short sequences."""
        work = self.work(num_seqs, sum_context, max_context)
        if isinstance(work, np.ndarray):
            seconds = p_norm(self.t0, work, self.p) * self.scale
            if self.grid is not None:
                memory = sum_context * self.memory_token * MICRO
                seconds = seconds * self.grid.factor(*np.broadcast_arrays(memory, num_seqs * self.units))
        else:
            seconds = self._one(num_seqs, sum_context, work)
        return at_least(seconds, sum_context * self.floor_token)

    def _one(self, num_seqs: float, sum_context: float, work: float) -> float:
        """One batch: the same formulas, spelt out, because a simulated step waits for them."""
        top = work if work > self.t0 else self.t0
        p = self.p
        seconds = self.scale * top * ((work / top) ** p + (self.t0 / top) ** p) ** (1.0 / p)
        if self.grid is None:
            return float(seconds)
        memory = sum_context * self.memory_token * MICRO
        x = math.log2(memory) if memory > LEAST else LEAST_LOG2
        return float(seconds * math.exp(self.grid.plane(x, log2(num_seqs * self.units))))


class DecodeLaw(OperatorLaw):
    """Seconds for arguments (num_seqs, sum_context, n_q, n_kv, head_dim[, max_context]).

    Coefficients: ``t0`` s, ``ec``, ``eb``, ``p``, ``unit`` s per sequence and KV head, ``skew`` (share of
    the imbalance num_seqs max - sum that is paid).
    """

    def kernel(self, n_q: Number, n_kv: Number, head_dim: Number) -> DecodeKernel:
        """The law for fixed heads."""
        grid = None if self.grid is None else self.grid.fixed(log2(float(n_kv)))
        return DecodeKernel(self, n_q, n_kv, head_dim, grid)

    def smooth(
        self,
        num_seqs: Number,
        sum_context: Number,
        n_q: Number,
        n_kv: Number,
        head_dim: Number,
        max_context: Number = 0.0,
    ) -> Number:
        """Launch against the work of `DecodeKernel.work`."""
        kernel = DecodeKernel(self, n_q, n_kv, head_dim, None)
        return p_norm(kernel.t0, kernel.work(num_seqs, sum_context, max_context), kernel.p)

    def coordinates(
        self,
        num_seqs: Number,
        sum_context: Number,
        n_q: Number,
        n_kv: Number,
        head_dim: Number,
        max_context: Number = 0.0,
    ) -> tuple[Number, ...]:
        """Memory time at peak in microseconds, units, KV heads."""
        memory = DecodeKernel(self, n_q, n_kv, head_dim, None).memory_token * sum_context
        return memory * MICRO, num_seqs * n_kv, n_kv

    def floor(
        self,
        num_seqs: Number,
        sum_context: Number,
        n_q: Number,
        n_kv: Number,
        head_dim: Number,
        max_context: Number = 0.0,
    ) -> Number:
        """Peak FLOPs or peak bandwidth, whichever is slower."""
        return DecodeKernel(self, n_q, n_kv, head_dim, None).floor_token * sum_context
