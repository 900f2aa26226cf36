"""Attention of a whole step: the sum over layer groups of one kernel each, with windows.

A layer with a window of w tokens attends to at most w: a decoding batch of b sequences to
min(Σ context, b·w), exact when contexts are equal and an upper bound otherwise; a prompt chunk does the
(query, key) pairs inside the band.

With speculation a decoding sequence has several queries, which share its KV as the heads of a group do (kernels pack
both into the rows of one tile): it is read once, and the FLOPs are those of so many times the query heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.models import ModelSpec, Precision
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.protocol import Laws

__all__ = ["StepAttention", "kv_laws"]

Array = NDArray[np.float64]
MEASURED_KV = ("bf16", "fp16", "fp8", "int8")
"""Formats of keys and values that attention laws are made for."""


@dataclass(frozen=True)
class StepAttention:
    """Attention of all layers of *model* on one rank; *ideal* is the floor, *scale* is on the laws.

    *width*: queries of each decoding sequence.
    """

    model: ModelSpec
    precision: Precision
    parallel: Parallelism
    laws: Laws
    ideal: Laws
    scale: float = 1.0
    width: float = 1.0

    def decode(self, num_seqs: Array | float, sum_context: Array) -> Array:
        """Seconds of all layers for *num_seqs* sequences and each sum of contexts, both per rank."""
        total = np.zeros_like(sum_context)
        for layer in self.model.layers:
            n_q, n_kv, head_dim = layer.attention.shard(self.parallel.tp).decode_heads
            reach = None if layer.window is None else layer.window + self.width - 1
            seen = sum_context if reach is None else np.minimum(sum_context, num_seqs * reach)
            total += layer.count * self._decode_layer(num_seqs, seen, (self.width * n_q, n_kv, head_dim))
        return total

    def _decode_layer(self, num_seqs: Array | float, seen: Array, heads: tuple[Any, ...]) -> Array:
        shape = (num_seqs, seen, *heads)
        law, floor = (self._stored(laws.decode_attention, shape) for laws in (self.laws, self.ideal))
        return np.asarray(np.maximum(self.scale * law, floor))

    def prefill(self, chunk: Array, context: Array) -> Array:
        """Seconds of all layers for chunks of *chunk* tokens after *context* earlier ones."""
        chunk, context = np.broadcast_arrays(chunk, context)
        total = np.zeros(chunk.shape)
        for layer in self.model.layers:
            heads = layer.attention.shard(self.parallel.tp).prefill_heads
            c, k = (chunk, context) if layer.window is None else banded(chunk, context, layer.window)
            total += layer.count * self._prefill_layer(c, k, heads)
        return total

    def _prefill_layer(self, chunk: Array, context: Array, heads: tuple[Any, ...]) -> Array:
        shape = (chunk, context, *heads)
        law, floor = (self._stored(laws.prefill_attention, shape) for laws in (self.laws, self.ideal))
        return np.asarray(np.maximum(self.scale * law, floor))

    def _stored(self, law: Callable[..., Any], shape: tuple[Any, ...]) -> Any:
        """*law* for keys and values in the cache's format."""
        names, form = kv_laws(self.precision), self.precision.cache
        if len(names) == 1:
            return law(*shape, *names)
        eight, sixteen = (law(*shape, name) for name in names)
        return np.maximum(eight + (form.bits - 8) / 8 * (sixteen - eight), 0.0)


def kv_laws(precision: Precision) -> tuple[str, ...]:
    """Formats whose laws price the cache: its own, or fp8 and bf16, on whose line by bits the others are put."""
    name = precision.cache.name
    return (name,) if name in MEASURED_KV else ("fp8", "bf16")


def banded(chunk: Array, context: Array, window: int) -> tuple[Array, Array]:
    """The (chunk, context) without a window that does the (query, key) pairs of one with *window* tokens.

    Pairs P of the band over c queries are P/c − c/2 tokens of context each; where the chunk is much longer
    than the window that is negative, and a shorter chunk of √(2P) tokens without context does P pairs.
    """
    growing = np.clip(window - context, 0.0, chunk)  # queries that do not fill the window yet
    pairs = growing * context + growing * growing / 2 + (chunk - growing) * window
    tail = pairs / chunk - chunk / 2
    return np.where(tail >= 0, chunk, np.sqrt(2 * pairs)), np.maximum(tail, 0.0)
