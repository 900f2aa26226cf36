"""The CUDA form of the operators: torch tensors in, one ctypes call each on the current stream.

A call passes raw pointers and returns once the kernel is queued, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.build import architecture_of, build
from engine.kernels.cuda_checks import check_attention, check_pinned, check_rows
from engine.kernels.interface import Kernels
from engine.kernels.library import DTYPE_CODES, Library, address
from engine.kernels.splits import MIN_CHUNK, choose_splits
from engine.kernels.torch_backend import TorchKernels
from engine.kernels.torch_cache import as_tensors
from engine.kernels.weights import QuantizedWeight
from simulator.errors import ConfigurationError

__all__ = ["CudaKernels"]

HOPPER = 9
TRITON_ROWS = 512  # (token, head) rows of a chunk from which Triton's launch is worth its host time
# Bytes of shared memory of a block of decode attention: SHARED_BYTES in its source.
DECODE_SHARED = {64: 65_536, 96: 98_304, 128: 98_304, 256: 139_264}
RESERVED_SHARED = (
    1024  # bytes the driver takes of each block, so that one block may have that much less than all
)


class CudaKernels(TorchKernels):
    """Operators by our CUDA library; `engine.kernels.interface.Kernels` says what each does."""

    name = "cuda"
    graph_safe = True

    def __init__(
        self,
        device: torch.device,
        reason: str,
        library: Library | None = None,
        processors: tuple[int, int] | None = None,
    ) -> None:
        """*library* and *processors* (how many, bytes of shared memory of each) default to the device's."""
        super().__init__(device, reason)
        self.form["matmul"] = "torch"
        self.triton = load_triton(device, library is None)
        if self.triton is not None and torch.cuda.get_device_capability(device)[0] == HOPPER:
            self.form["prefill_attention"] = f"triton from {TRITON_ROWS} rows (wgmma)"
        self.library = library or Library(build((architecture_of(device),)))
        self.processors, self.shared = processors or read_properties(device)

    def _launch(self, name: str, *arguments: Tensor | int | float | None) -> None:
        """Call the library on the current stream; tensors go as their addresses."""
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        self.library.call(name, *map(address, arguments), stream)

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
        check_attention(out, q, k_cache, block_table, context_lens)
        batch, heads, dim = q.shape
        _, block_size, kv_heads, _ = k_cache.shape
        bound = max_context or block_table.shape[1] * block_size
        bound = min(bound, sliding_window) if sliding_window else bound
        splits = num_splits or choose_splits(batch, kv_heads, bound, self._decode_slots(dim))
        # Partial outputs and, behind them, the logarithms of their softmax sums.
        rows = splits * batch * heads if splits > 1 else 0
        partial = torch.empty(rows * (dim + 1), dtype=torch.float32, device=q.device)
        self._launch(
            "decode_attention", out, partial, partial.data_ptr() + rows * dim * 4, q, k_cache, v_cache,
            block_table, context_lens, scale, DTYPE_CODES[q.dtype], batch, heads, kv_heads, dim,
            block_size, block_table.stride(0), q.stride(0), splits, 1 if num_splits else MIN_CHUNK,
            sliding_window,
        )  # fmt: skip

    def _decode_slots(self, dim: int) -> int:
        """Thread blocks of decode attention that the device runs at a time."""
        needed = DECODE_SHARED[dim] + RESERVED_SHARED
        if needed > self.shared:
            raise ConfigurationError(
                f"head_dim {dim}: CUDA decode attention needs {needed} bytes of shared memory, "
                f"a multiprocessor has {self.shared}"
            )
        return self.processors * (self.shared // needed)

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
        check_attention(out, q, k_cache, block_table, context_lens, query_start)
        tokens, heads, dim = q.shape
        _, block_size, kv_heads, _ = k_cache.shape
        most = max_query or tokens
        wide = most * (heads // kv_heads) >= TRITON_ROWS
        if self.triton is not None and wide and "triton" in self.form["prefill_attention"]:
            self.triton.prefill_attention(
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
            )
            return
        self._launch(
            "prefill_attention", out, q, k_cache, v_cache, block_table, query_start, context_lens,
            scale, DTYPE_CODES[q.dtype], context_lens.shape[0], most, heads, kv_heads, dim, block_size,
            block_table.stride(0), q.stride(0), sliding_window,
        )  # fmt: skip

    def kv_write(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
        check_rows(k, v)
        size = k.element_size()
        slots = as_type(slot_mapping, torch.int64)
        self._launch(
            "kv_write", k, v, k_cache, v_cache, slots, k.shape[0],
            k[0].numel() * size if k.shape[0] else 0, k.stride(0) * size, v.stride(0) * size,
        )  # fmt: skip

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
        source, target = as_type(src, torch.int64), as_type(dst, torch.int64)
        self._launch(
            "copy_blocks", k_cache, v_cache, source, target, src.shape[0],
            k_cache.stride(0) * k_cache.element_size(),
        )  # fmt: skip

    def swap_out(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        self._swap(gpu_cache, cpu_cache, block_pairs, coalesced)

    def swap_in(
        self,
        gpu_cache: Tensor | Sequence[Tensor],
        cpu_cache: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool = True,
    ) -> None:
        self._swap(cpu_cache, gpu_cache, block_pairs, coalesced)

    def _swap(
        self,
        source: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        block_pairs: Sequence[tuple[int, int]],
        coalesced: bool,
    ) -> None:
        if not block_pairs:
            return
        pairs = torch.tensor(block_pairs, dtype=torch.int64)
        if coalesced and self.device.type == "cuda":
            pairs = pairs.pin_memory().to(self.device, non_blocking=True)
        name = "swap_blocks" if coalesced else "swap_each_block"
        for src, dst in zip(as_tensors(source), as_tensors(target), strict=True):
            check_pinned(src, dst)
            block_bytes = src.stride(0) * src.element_size()
            self._launch(
                name, src, dst, pairs, len(block_pairs), block_bytes,
            )  # fmt: skip

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._rms_norm(out, None, x, None, weight, eps)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = torch.empty_like(out)
        self._rms_norm(out, total, x, residual.contiguous(), weight, eps)
        return out, total

    def _rms_norm(
        self,
        out: Tensor,
        total: Tensor | None,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        eps: float,
    ) -> None:
        x = x if x.dim() in (2, 3) and x.stride(-1) == 1 else x.reshape(-1, x.shape[-1]).contiguous()
        outer, inner = x.stride(0), x.stride(1) if x.dim() == 3 else 0
        self._launch(
            "rms_norm", out, total, x, residual, weight, eps, DTYPE_CODES[x.dtype],
            x.numel() // x.shape[-1], x.shape[-1], x.shape[1] if x.dim() == 3 else 1, outer, inner,
        )  # fmt: skip

    def rope(self, q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
        check_rows(q, k)
        if cos_sin_cache.dtype != torch.float32:
            raise ConfigurationError(f"cos_sin_cache {cos_sin_cache.dtype}: must be float32")
        places = as_type(positions, torch.int64)
        self._launch(
            "rope", q, k, places, cos_sin_cache, DTYPE_CODES[q.dtype], q.shape[0], q.shape[1],
            k.shape[1], q.shape[2], cos_sin_cache.shape[1], q.stride(0), k.stride(0),
        )  # fmt: skip

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        features = gate_up.shape[-1] // 2
        rows = gate_up.reshape(-1, 2 * features)
        out = torch.empty((*gate_up.shape[:-1], features), dtype=gate_up.dtype, device=gate_up.device)
        self._launch(
            "silu_mul", out, rows, DTYPE_CODES[rows.dtype], rows.shape[0], features, rows.stride(0),
        )  # fmt: skip
        return out

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
        rows, vocabulary = logits.shape
        out = torch.empty(rows, vocabulary, dtype=torch.float32, device=logits.device)
        # Converted copies are named, so that they live until the launch.
        floats = [
            as_type(t, torch.float32)
            for t in (temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)
        ]
        k = as_type(top_k, torch.int32)
        prompt, counts = as_type(prompt_mask, torch.bool), as_type(output_counts, torch.int32)
        heat, nucleus, least, *penalties = floats
        self._launch(
            "process_logits", out, logits, DTYPE_CODES[logits.dtype], rows, vocabulary,
            logits.stride(0), heat, k, nucleus, least, *penalties, prompt, counts,
        )  # fmt: skip
        return out

    def draw(
        self,
        logits: Tensor,
        seeds: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        rows, vocabulary = logits.shape
        uniforms = None
        if seeds is None or steps is None:
            uniforms = torch.rand(rows, dtype=torch.float64, device=logits.device, generator=generator)
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        wide = logits.float().contiguous()
        seeds, steps = as_type(seeds, torch.int64), as_type(steps, torch.int64)
        self._launch(
            "draw", tokens, wide, rows, vocabulary, seeds, steps, uniforms,
        )  # fmt: skip
        return tokens

    def matmul(self, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Tensor:
        if self.triton is None:
            return super().matmul(x, weight, bias)
        return self.triton.matmul(x, weight, bias)


def load_triton(device: torch.device, wanted: bool) -> Kernels | None:
    """The Triton form, for the operators where it is the faster one; None where there is no Triton."""
    if not wanted or importlib.util.find_spec("triton") is None:
        return None
    from engine.kernels.triton_backend import TritonKernels

    return TritonKernels(device, "beside CUDA")


def as_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous in *dtype*, itself if it is that already."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def read_properties(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory of each."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_multiprocessor
