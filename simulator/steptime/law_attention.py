"""Attention on one device: of a prompt chunk, and of one new token per sequence.

*Prefill*: a chunk of c tokens after k earlier ones, causal: query i sees k + i keys, so 4 h d c (k + (c + 1)/2) FLOPs
(QK^T and PV, two each) for h query heads of d. *Decode*: every sequence reads its whole KV once; the
time follows the sum of contexts, plus a term per sequence (a block per sequence and head group, table look-ups).
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles import DTYPES, Law
from simulator.steptime.law_form import Grid, Number, at_least, p_norm, residual_factor

__all__ = ["DecodeKernel", "DecodeLaw", "PrefillLaw", "prefill_flops"]

TILE = 128
"""Rows of a query tile: a chunk is worked on in whole tiles (FlashAttention-2 and 3)."""


def prefill_flops(chunk: Number, context: Number, n_q: int, head_dim: int) -> Number:
    """FLOPs of causal attention of *chunk* tokens after *context* earlier ones."""
    return 4.0 * n_q * head_dim * chunk * (context + (chunk + 1.0) / 2.0)


@dataclass(frozen=True, slots=True)
class PrefillLaw:
    """Seconds of prefill attention over *num_seqs* equal chunks in one launch, KV write included."""

    law: Law
    grid: Grid | None
    peak: float
    bandwidth: float
    scale: float = 1.0

    def __call__(
        self, chunk: Number, context: Number, n_q: int, n_kv: int, head_dim: int, num_seqs: Number = 1
    ) -> Number:
        c = self.law.coefficients
        flops = num_seqs * prefill_flops(chunk, context, n_q, head_dim)
        kv = DTYPES[self.law.dtype].weight_bytes
        moved = 4.0 * n_q * head_dim * chunk + 2.0 * kv * n_kv * head_dim * (chunk + context)
        compute, memory = flops / self.peak, num_seqs * moved / self.bandwidth
        smooth = c["t0"] + p_norm(compute / c["ec"], memory / c["eb"], c["p"])
        seconds = smooth * residual_factor(self.grid, chunk + context, num_seqs * n_q, n_kv) * self.scale
        return at_least(seconds, at_least(compute, memory))


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """Decode attention with the heads fixed: what a step evaluates for every batch."""

    t0: float
    per_seq: float
    per_token: float
    """Seconds per token of context at fitted efficiency."""
    floor_token: float
    """The same at peak bandwidth."""
    p: float
    grid: Grid | None
    scale: float
    skew: float

    def __call__(self, num_seqs: Number, sum_context: Number, max_context: Number = 0.0) -> Number:
        """Seconds for *num_seqs* sequences whose contexts sum to *sum_context* tokens.

        *max_context* is the longest, if known: a batch of one long and many short sequences takes longer than its sum says.
        """
        seconds = p_norm(self.t0, sum_context * self.per_token + num_seqs * self.per_seq, self.p)
        if self.grid is not None:
            seconds = seconds * residual_factor(self.grid, sum_context, num_seqs)
        if self.skew:
            imbalance = at_least(num_seqs * max_context - sum_context, 0.0)
            seconds = seconds + self.skew * imbalance * self.per_token
        return at_least(seconds * self.scale, sum_context * self.floor_token)


@dataclass(frozen=True, slots=True)
class DecodeLaw:
    """Makes the kernel of a head configuration."""

    law: Law
    grid: Grid | None
    peak: float
    bandwidth: float
    scale: float = 1.0

    def kernel(self, n_q: int, n_kv: int, head_dim: int) -> DecodeKernel:
        """The law for *n_q* query and *n_kv* key-value heads of *head_dim* on this device."""
        c = self.law.coefficients
        kv_bytes = 2.0 * n_kv * head_dim * DTYPES[self.law.dtype].weight_bytes  # K and V of one token
        flops = 4.0 * n_q * head_dim  # QK^T and PV of one token
        memory, compute = kv_bytes / self.bandwidth, flops / self.peak
        return DecodeKernel(
            t0=c["t0"],
            per_seq=c["tb"],
            per_token=p_norm(compute / c["ec"], memory / c["eb"], 2.0),
            floor_token=at_least(compute, memory),
            p=c["p"],
            grid=None if self.grid is None else self.grid.fixed(0.0),
            scale=self.scale,
            skew=c.get("skew", 0.0),
        )
