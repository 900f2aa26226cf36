"""Attention that writes its scores to memory, as it was computed before FlashAttention.

Dao et al. 2022 (arXiv 2205.14135, algorithm 0): S = QKᵀ is written, read by the softmax, which writes P, which is read
to form PV. In 16 bits that is 8 bytes per (query, key) pair and head; the masked half of a causal prompt is computed
and moved like the rest:

    pairs    chunk · (context + chunk) of a prompt, Σ context of a decoding batch
    bytes    n_q · 8 · pairs, and where query heads share KV heads 8 · n_q · d per key for the repeated K and V,
             which are written and read once more (transformers' ``repeat_kv``; 2 tensors of 2 bytes)
    FLOPs    4 · n_q · d · pairs
    time     flash · pairs / causal pairs + stream(bytes) + two more launches
    memory   n_q · 4 · pairs: scores and probabilities of one layer at a time

The products run at the rate of the fused kernel; what is streamed at that of an element-wise kernel.
"""

from __future__ import annotations

from typing import Any

from simulator.steptime.attention import StepAttention
from simulator.steptime.protocol import Number

__all__ = ["MaterialisedAttention", "score_bytes", "score_memory"]

PASSES = 8.0
"""Bytes of a score over its life: written and read twice, 2 bytes each time."""
HELD = 4.0
"""Bytes of a score while the softmax runs: it and its probability."""


class MaterialisedAttention(StepAttention):
    """`StepAttention` with the scores of every layer in memory."""

    def _decode_layer(self, num_seqs: Number, seen: Number, heads: tuple[Any, ...]) -> Number:
        q, n_kv, d = heads
        moved = score_bytes(self.width * seen, seen, q / self.width, n_kv, d)
        return super()._decode_layer(num_seqs, seen, heads) + self._stream(moved)

    def _prefill_layer(self, chunk: Number, context: Number, heads: tuple[Any, ...]) -> Number:
        keys = context + chunk
        causal = context + (chunk + 1.0) / 2.0
        whole = super()._prefill_layer(chunk, context, heads) * (keys / causal)
        return whole + self._stream(score_bytes(chunk * keys, keys, *heads))

    def _stream(self, moved: Number) -> Number:
        return self.laws.elementwise(moved) + 2.0 * self.laws.elementwise(0.0 * moved)


def score_bytes(pairs: Number, keys: Number, n_q: Any, n_kv: Any, head_dim: Any) -> Number:
    """Bytes that *pairs* scores of every head, and K and V repeated for *keys* keys, move through memory."""
    repeated = PASSES * n_q * head_dim * keys if n_q > n_kv else 0.0 * keys
    return PASSES * n_q * pairs + repeated


def score_memory(num_heads: int, tokens: int, context: int) -> float:
    """Bytes of scores and probabilities of one layer while *tokens* queries attend to *context* keys."""
    return HELD * num_heads * tokens * context
