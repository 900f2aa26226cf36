"""The torch form of every operator: the reference, and what runs where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.kernels import torch_attention, torch_cache, torch_elementwise, torch_sampling
from engine.kernels.interface import Kernels
from engine.kernels.weights import FP8_MAX, QuantizedWeight, dequantize

__all__ = ["TorchKernels"]


class TorchKernels(Kernels):
    """Operators by torch; `engine.kernels.interface.Kernels` says what each does."""

    name = "torch"
    graph_safe = False

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
        torch_attention.decode_attention(
            out, q, k_cache, v_cache, block_table, context_lens, scale, max_context, sliding_window
        )

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
        torch_attention.prefill_attention(
            out, q, k_cache, v_cache, block_table, query_start, context_lens, scale, sliding_window
        )

    def kv_write(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        torch_cache.kv_write(k, v, k_cache, v_cache, slot_mapping)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        torch_cache.copy_blocks(k_cache, v_cache, src, dst)

    def swap_out(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        torch_cache.move_blocks(gpu_cache, cpu_cache, block_pairs, coalesced)

    def swap_in(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        torch_cache.move_blocks(cpu_cache, gpu_cache, block_pairs, coalesced)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch_elementwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return torch_elementwise.add_rms_norm(x, residual, weight, eps)

    def rope(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
        torch_elementwise.rope(q, k, positions, cos_sin_cache)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return torch_elementwise.silu_mul(gate_up)

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
        return torch_sampling.process_logits(
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            prompt_mask=prompt_mask,
            output_counts=output_counts,
        )

    def draw(
        self,
        logits: Tensor,
        seeds: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch_sampling.draw(logits, seeds, steps, generator)

    def matmul(self, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return linear(x, weight, bias)
        if weight.format == "fp8" and has_fp8(self.device):
            return fp8_matmul(x, weight, bias)
        return linear(x, dequantize(weight, x.dtype), bias)


def has_fp8(device: torch.device) -> bool:
    """Whether the tensor cores multiply fp8: compute capability 8.9 (Ada) and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def fp8_matmul(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Scale each row of *x* into E4M3 and multiply as fp8; the scales of rows and columns come back in the
    epilogue."""
    rows = x.reshape(-1, x.shape[-1])
    scales = rows.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / FP8_MAX
    narrow = (rows.float() / scales).to(torch.float8_e4m3fn)
    # Row-wise scaling is offered for bf16 results only.
    product = torch._scaled_mm(
        narrow, weight.data.t(), scale_a=scales, scale_b=weight.scales.t(), out_dtype=torch.bfloat16
    )
    result = product.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias
