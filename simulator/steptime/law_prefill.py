"""Prefill attention: a chunk of c tokens after k earlier ones, causal.

Query i sees k + i keys, so 4 h d c (k + (c + 1)/2) FLOPs (QK^T and PV, two each) for h query heads of d. A
kernel works on tiles of 128 query rows. FlashAttention-3 packs the query heads that share a KV head into
one tile (``pack`` 1), which matters for short chunks; FlashAttention-2 does not (``pack`` 0). The write of
the new KV is included.

Queries, keys and values that fit the L2 cache, where the projections just left them, need not come from memory. An L40S
has 96 MB of it: 32 prompts of 128 tokens with 32 KV heads take four times as long as with 8, which is where they no
longer fit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwprofiles import DTYPES
from simulator.steptime.law_form import Number, OperatorLaw, at_least, ceil, p_norm

__all__ = ["PrefillLaw", "prefill_flops"]

SPILL = 4.0
"""Order of the step from L2 to memory: three quarters of it within an octave."""
TILE = 128
"""Query rows of a tile (FlashAttention-2 and 3)."""


def prefill_flops(chunk: Number, context: Number, n_q: Number, head_dim: Number) -> Number:
    """FLOPs of causal attention of *chunk* tokens after *context* earlier ones."""
    return 4.0 * n_q * head_dim * chunk * (context + (chunk + 1.0) / 2.0)


class Work(NamedTuple):
    """What one launch does; adds up over the sequences in it."""

    flops: Number
    tile_flops: Number
    """With query rows rounded up to whole tiles."""
    tiles: Number
    moved: Number
    """Bytes of queries, keys, values and outputs."""


class PrefillLaw(OperatorLaw):
    """Seconds for arguments (chunk, context, n_q, n_kv, head_dim, num_seqs): *num_seqs* equal chunks in one
    launch.

    Coefficients: ``t0`` s, ``ec``, ``eb``, ``p``, ``tile`` s per tile of query rows, ``pack``, ``cached`` (share of the
    time of the bytes that is left where they fit L2; 1 where the data do not show any gain).
    """

    def work(
        self, chunk: Number, context: Number, n_q: Number, n_kv: Number, head_dim: Number, num_seqs: Number
    ) -> Work:
        """FLOPs, tiles and bytes of the launch."""
        packed = self.coefficients["pack"] >= 0.5
        group = n_q / n_kv if packed else 1.0
        tiles = num_seqs * (n_kv if packed else n_q) * ceil(chunk * group / TILE)
        keys = context + (chunk + TILE) / 2.0  # mean over the rows of a tile, diagonal tiles whole
        kv = DTYPES[self.dtype].weight_bytes
        moved = (
            num_seqs
            * head_dim
            * (4.0 * n_q * chunk + 2.0 * kv * n_kv * (chunk + context) + 4.0 * n_kv * chunk)
        )
        flops = num_seqs * prefill_flops(chunk, context, n_q, head_dim)
        return Work(flops, 4.0 * head_dim * TILE * tiles * keys, tiles, moved)

    def smooth(self, *arguments: Number) -> Number:
        """Launch, then tiles against memory."""
        return self._of_work(self.work(*arguments))

    def _of_work(self, work: Work) -> Number:
        c = self.coefficients
        compute = work.tile_flops / (c["ec"] * self.device.peak) + work.tiles * c["tile"]
        memory = work.moved / (c["eb"] * self.device.bandwidth) * self._from_memory(work.moved)
        return c["t0"] + p_norm(compute, memory, c["p"])

    def _from_memory(self, moved: Number) -> Number:
        """Share of the time of *moved* bytes that is left where they fit L2, growing to one where they do not."""
        cached = self.coefficients.get("cached", 1.0)
        return cached + (1.0 - cached) / (1.0 + (self.device.l2 / moved) ** SPILL)

    def coordinates(
        self, chunk: Number, context: Number, n_q: Number, n_kv: Number, head_dim: Number, num_seqs: Number
    ) -> tuple[Number, ...]:
        """(keys, heads) of the prompt without context that has the same mean keys and as many tiles."""
        keys = chunk + 2.0 * context
        return keys, num_seqs * n_q * chunk / keys

    def floor(self, *arguments: Number) -> Number:
        """Peak FLOPs or peak bandwidth, whichever is slower."""
        work = self.work(*arguments)
        return self._floor_of_work(work)

    def _floor_of_work(self, work: Work) -> Number:
        return at_least(work.flops / self.device.peak, work.moved / self.device.bandwidth)

    def varlen(
        self, chunks: NDArray[Any], contexts: NDArray[Any], n_q: int, n_kv: int, head_dim: int
    ) -> float:
        """Seconds of one launch over sequences of different lengths: work adds up, launch is paid once."""
        chunks, contexts = np.asarray(chunks, float), np.asarray(contexts, float)
        work = Work(*(float(np.sum(part)) for part in self.work(chunks, contexts, n_q, n_kv, head_dim, 1.0)))
        seconds = self._of_work(work) * self.scale
        if self.grid is not None:
            weights = prefill_flops(chunks, contexts, n_q, head_dim)
            keys = float(np.average(chunks + 2.0 * contexts, weights=weights))
            seconds = seconds * self.grid.factor(keys, n_q * float(chunks.sum()) / keys)
        return float(at_least(seconds, self._floor_of_work(work)))
