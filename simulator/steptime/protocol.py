"""What a step needs from a device: one law per operator family, work in, seconds out.

Arguments are scalars or numpy arrays that broadcast; a law returns what it was given. Attention laws
include writing the new keys and values, as the kernels they are fitted to do.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Laws", "Number"]

Number = Any
"""A float or an array of floats."""


class Laws(Protocol):
    """The laws of one device; `LawSet` is fitted, `RooflineLaws` is ideal."""

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth, B/s."""

    @property
    def link_bandwidth(self) -> float:
        """GPU to GPU, one direction, B/s."""

    def peak_flops(self, dtype: str) -> float:
        """Dense peak on which *dtype* multiplies, FLOP/s."""

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> Number:
        """y[m, n] = x[m, k] Wᵀ."""

    def prefill_attention(
        self, chunk: Number, context: Number, n_q: Any, n_kv: Any, head_dim: Any, kv_dtype: str
    ) -> Number:
        """Causal attention of *chunk* new tokens after *context* earlier ones."""

    def decode_attention(
        self, num_seqs: Number, sum_context: Number, n_q: Any, n_kv: Any, head_dim: Any, kv_dtype: str
    ) -> Number:
        """One new token for each of *num_seqs* sequences that attend to *sum_context* tokens together."""

    def moe(
        self,
        num_tokens: Number,
        hidden: int,
        inter: int,
        topk: int,
        num_experts: int,
        tp: int,
        ep: int,
        dtype: str,
    ) -> Number:
        """Routed experts of one layer on one rank; *inter* is an expert's whole width."""

    def all_reduce(self, message: Number, num_gpus: int) -> Number:
        """Sum of *message* bytes over *num_gpus*."""

    def collective(self, op: str, message: Number, num_gpus: int) -> Number:
        """``all_gather``, ``reduce_scatter`` or ``all_to_all`` of *message* bytes (the whole result)."""

    def send_recv(self, message: Number) -> Number:
        """*message* bytes from one GPU to another."""

    def elementwise(self, moved: Number) -> Number:
        """A kernel that reads and writes *moved* bytes."""

    def sampling(self, rows: Number, vocab: int) -> Number:
        """Softmax, filter and draw over *rows* rows of logits."""
