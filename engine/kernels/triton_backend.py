"""The Triton form of the operators: for a GPU without nvcc, for fp32, and interpreted on a CPU in tests."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels import (
    triton_attention,
    triton_cache,
    triton_elementwise,
    triton_matmul,
    triton_sampling,
)
from engine.kernels.splits import MIN_CHUNK, choose_splits
from engine.kernels.torch_backend import TorchKernels
from engine.kernels.torch_sampling import uniform
from engine.kernels.weights import QuantizedWeight

__all__ = ["TritonKernels"]

PROCESSORS_WITHOUT_DEVICE = 8  # what the interpreter pretends to have


class TritonKernels(TorchKernels):
    """Operators by Triton; `engine.kernels.interface.Kernels` says what each does."""

    name = "triton"
    graph_safe = True

    def __init__(self, device: torch.device, reason: str) -> None:
        super().__init__(device, reason)
        self.form |= {"matmul": "torch", "swap_in": "torch", "swap_out": "torch"}
        self.prefill_tiles: triton_attention.Tiles | None = None  # None: the default for the head dim
        self.processors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else PROCESSORS_WITHOUT_DEVICE
        )

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
        batch, heads, dim = q.shape
        if not batch:
            return
        bound = max_context or block_table.shape[1] * k_cache.shape[1]
        bound = min(bound, sliding_window) if sliding_window else bound
        splits = num_splits or choose_splits(batch, k_cache.shape[2], bound, 2 * self.processors)
        least = 1 if num_splits else MIN_CHUNK
        several = splits > 1
        shape = (splits, batch, heads) if several else (0, 0, 0)
        partial = torch.empty((*shape, dim), dtype=torch.float32, device=q.device)
        log_sum = torch.empty(shape, dtype=torch.float32, device=q.device)
        triton_attention.launch_decode(
            out,
            partial,
            log_sum,
            q,
            k_cache,
            v_cache,
            block_table,
            context_lens,
            scale,
            splits,
            least,
            sliding_window,
        )
        if several:
            triton_attention.launch_merge(out, partial, log_sum, context_lens, splits, least, sliding_window)

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
        most = max_query or q.shape[0]
        if most:
            triton_attention.launch_prefill(
                out,
                q,
                k_cache,
                v_cache,
                block_table,
                query_start,
                context_lens,
                scale,
                most,
                sliding_window,
                self.prefill_tiles,
            )

    def kv_write(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        triton_cache.launch_kv_write(k, v, k_cache, v_cache, slot_mapping.contiguous())

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        triton_cache.launch_copy_blocks(k_cache, v_cache, src.contiguous(), dst.contiguous())

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_elementwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return triton_elementwise.add_rms_norm(x, residual, weight, eps)

    def rope(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
        triton_elementwise.rope(q, k, positions.contiguous(), cos_sin_cache)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return triton_elementwise.silu_mul(gate_up)

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
        return triton_sampling.process_logits(
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            prompt_mask,
            output_counts,
        )

    def draw(
        self,
        logits: Tensor,
        seeds: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if seeds is None or steps is None:
            rows = logits.shape[0]
            u = torch.rand(rows, dtype=torch.float64, device=logits.device, generator=generator)
        else:
            u = uniform(seeds, steps)
        return triton_sampling.draw(logits, u)

    def matmul(self, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, QuantizedWeight) and weight.format != "fp8":
            rows = x.numel() // x.shape[-1]
            if rows <= triton_matmul.MAX_ROWS:
                return triton_matmul.quantized_matmul(x, weight, bias)
        return super().matmul(x, weight, bias)
