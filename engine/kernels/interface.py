"""What the engine asks of a set of kernels, whatever they are written in.

A decoder layer is a few large matrix products and, around them, small operators that move
memory: attention over the paged KV cache, writing that cache, normalisation, rotation,
activation, and at the end the choice of a token. The products are cuBLAS's (`torch.matmul`);
the rest is here, in three forms: CUDA, Triton and torch. The torch form is the reference.

Shapes. A layer's cache is two tensors ``[num_blocks, block_size, num_kv_heads, head_dim]``; token
*i* of a sequence lies in slot ``i % block_size`` of block ``block_table[sequence, i // block_size]``.
``B`` sequences, ``T`` tokens packed without padding, ``G = num_heads / num_kv_heads`` query heads share
one KV head. Slots that no token has written may hold anything, NaN too, and entries of the block
table behind a sequence's last block may be any number: no kernel lets them reach a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from engine.kernels.weights import QuantizedWeight

__all__ = ["OPERATORS", "Kernels"]

OPERATORS = (
    "copy_blocks",
    "decode_attention",
    "kv_write",
    "matmul",
    "prefill_attention",
    "rms_norm",
    "rope",
    "sample",
    "silu_mul",
    "swap_in",
    "swap_out",
)


class Kernels(ABC):
    """One backend's operators, for one device.

    `name` is ``cuda``, `triton` or ``torch``; `reason` says why this one was chosen; `form` names for
    each operator the form that really runs (a backend may take another's where that is the faster one).
    """

    name: ClassVar[str]
    graph_safe: ClassVar[bool]
    """Whether every operator of a decode step may be captured in a CUDA graph."""

    def __init__(self, device: torch.device, reason: str) -> None:
        self.device = device
        self.reason = reason
        self.form: dict[str, str] = dict.fromkeys(OPERATORS, self.name)

    def describe(self) -> str:
        """The choice in one line, and the operators that differ from it."""
        others = [f"{op} by {form}" for op, form in sorted(self.form.items()) if form != self.name]
        tail = f"; {', '.join(others)}" if others else ""
        return f"kernels: {self.name} ({self.reason}){tail}"

    @abstractmethod
    def decode_attention(
        self,
        out: Tensor,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_table: Tensor,
        context_lens: Tensor,
        scale: float,
        max_context: int | None = None,
        sliding_window: int = 0,
        num_splits: int = 0,
    ) -> None:
        """Attend from each sequence's last token to its whole context; write *out*.

        *q*, *out* ``[B, num_heads, head_dim]``; *block_table* int32 ``[B, max_blocks]``; *context_lens* int32
        ``[B]``, the new token counted in; a sequence of length 0 (padding) gets zeros. *max_context* bounds
        the lengths (default: the width of the table), so that a launch needs no look at the device;
        *sliding_window* tokens are seen, 0 for all. *num_splits* parts of the context run in parallel and
        are merged, 0 to let the kernel choose.
        """

    @abstractmethod
    def prefill_attention(
        self,
        out: Tensor,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_table: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        scale: float,
        max_query: int | None = None,
        sliding_window: int = 0,
    ) -> None:
        """Causal attention of chunks of new tokens to what is in the cache; write *out*.

        *q*, *out* ``[T, num_heads, head_dim]``, packed: sequence *b* owns rows ``query_start[b]`` to
        ``query_start[b + 1]`` (int32 ``[B + 1]``), and they are the last tokens of its ``context_lens[b]``
        (int32 ``[B]``, the chunk counted in). Their K and V are in the cache already. *max_query* bounds the
        chunks (default: T).
        """

    @abstractmethod
    def kv_write(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store new keys and values ``[T, num_kv_heads, head_dim]``; *slot_mapping* int64 ``[T]``, below 0:
        skip.

        A slot is ``block * block_size + offset``. Rows of *k* and *v* may be strided (a slice of a fused
        QKV).
        """

    @abstractmethod
    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        """Copy whole blocks inside one layer's cache (copy-on-write); *src*, *dst* int64 ``[n]``."""

    @abstractmethod
    def swap_out(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        """Copy blocks ``(device, host)`` to pinned host memory, on the current stream.

        Each cache is a tensor, or one per layer and side, with blocks as the first dimension. *coalesced*
        moves all blocks of a tensor at once; otherwise each block is a copy call of its own, as in vLLM's V0.
        """

    @abstractmethod
    def swap_in(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        """Copy blocks ``(host, device)`` back; otherwise as `swap_out`."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension, the mean in fp32."""

    @abstractmethod
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of ``x + residual``, and that sum (rounded to the dtype) for the next residual."""

    @abstractmethod
    def rope(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
        """Rotate *q* ``[T, num_heads, head_dim]`` and *k* ``[T, num_kv_heads, head_dim]`` in place (NeoX
        halves).

        *positions* int64 ``[T]``; *cos_sin_cache* fp32 ``[max_position, rotary_dim]``, cosines of the
        ``rotary_dim / 2`` frequencies, then their sines. Dimensions from ``rotary_dim`` on stay as they are.
        """

    @abstractmethod
    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for ``[..., 2 F]`` = gate, up; the result is ``[..., F]``."""

    @abstractmethod
    def process_logits(
        self,
        logits: Tensor,
        *,
        temperature: Tensor | None = None,
        top_k: Tensor | None = None,
        top_p: Tensor | None = None,
        min_p: Tensor | None = None,
        repetition_penalty: Tensor | None = None,
        presence_penalty: Tensor | None = None,
        frequency_penalty: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        output_counts: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, V]`` in fp32 after penalties, temperature and filters (what is cut is -inf).

        Every parameter is a tensor ``[B]`` or absent. Order: penalties, temperature, min-p, top-k, top-p
        (vLLM's). *top_k* 0 or below, *top_p* 1 and *min_p* 0 are off. *temperature* 0 leaves only the
        largest logit (greedy). The repetition penalty (Keskar et al. 2019, sec. 4.1) looks at *prompt_mask*
        bool ``[B, V]`` and *output_counts* int32 ``[B, V]``, the other two (OpenAI's) at *output_counts*
        alone.
        """

    @abstractmethod
    def draw(
        self,
        logits: Tensor,
        seeds: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One token per row, int64 ``[B]``, from ``softmax(logits)``.

        With *seeds* and *steps* (int64 ``[B]``: the request's seed, and how many tokens it has) a row's
        choice depends on these and its logits alone, not on the batch it is in; without them, on *generator*.
        """

    def sample(
        self,
        logits: Tensor,
        *,
        temperature: Tensor | None = None,
        top_k: Tensor | None = None,
        top_p: Tensor | None = None,
        min_p: Tensor | None = None,
        repetition_penalty: Tensor | None = None,
        presence_penalty: Tensor | None = None,
        frequency_penalty: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        output_counts: Tensor | None = None,
        seeds: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Tensor:
        """`process_logits`, then `draw`; *greedy* for a batch without any randomness (arg max after
        penalties)."""
        processed = self.process_logits(
            logits,
            temperature=None if greedy else temperature,
            top_k=None if greedy else top_k,
            top_p=None if greedy else top_p,
            min_p=None if greedy else min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            prompt_mask=prompt_mask,
            output_counts=output_counts,
        )
        if greedy:
            return processed.argmax(dim=-1)
        return self.draw(processed, seeds, steps, generator)

    @abstractmethod
    def matmul(self, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias`` for *x* ``[..., K]`` and a weight ``[N, K]``, dense or quantised."""
