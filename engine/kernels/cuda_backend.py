"""The CUDA form of the operators: torch tensors in, one ctypes call each on the current stream.

A call passes raw pointers and returns once the kernel is queued, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.build import architecture_of, build
from engine.kernels.library import DTYPE_CODES, Library
from engine.kernels.splits import MIN_CHUNK, choose_splits
from engine.kernels.torch_backend import TorchKernels
from simulator.errors import ConfigurationError

__all__ = ["CudaKernels"]

HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 16
BLOCKS_PER_SM = {64: 3, 96: 2, 128: 2, 256: 1}  # of decode attention, by shared memory on a 227 KiB part


class CudaKernels(TorchKernels):
    """Operators by our CUDA library; `engine.kernels.interface.Kernels` says what each does."""

    name = "cuda"
    graph_safe = True

    def __init__(
        self, device: torch.device, reason: str, library: Library | None = None, processors: int | None = None
    ) -> None:
        """*library* and *processors* (multiprocessors) default to those of the device."""
        super().__init__(device, reason)
        self.library = library or Library(build((architecture_of(device),)))
        self.processors = processors or torch.cuda.get_device_properties(device).multi_processor_count

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

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
        _, block_size, kv_heads, _ = k_cache.shape
        check_attention(q, k_cache)
        bound = max_context or block_table.shape[1] * block_size
        bound = min(bound, sliding_window) if sliding_window else bound
        slots = self.processors * BLOCKS_PER_SM[dim]
        splits = num_splits or choose_splits(batch, kv_heads, bound, slots)
        partial = torch.empty(
            (splits, batch, heads, dim) if splits > 1 else (0,), dtype=torch.float32, device=q.device
        )
        log_sum = torch.empty(
            (splits, batch, heads) if splits > 1 else (0,), dtype=torch.float32, device=q.device
        )
        self.library.call(
            "decode_attention",
            out.data_ptr(),
            partial.data_ptr(),
            log_sum.data_ptr(),
            q.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            block_table.data_ptr(),
            context_lens.data_ptr(),
            scale,
            DTYPE_CODES[q.dtype],
            batch,
            heads,
            kv_heads,
            dim,
            block_size,
            block_table.shape[1],
            q.stride(0),
            splits,
            1 if num_splits else MIN_CHUNK,
            sliding_window,
            self._stream(),
        )


def check_attention(q: Tensor, k_cache: Tensor) -> None:
    """Raise where the CUDA attention kernels have no instance for these shapes."""
    heads, dim = q.shape[-2:]
    group = heads // k_cache.shape[2]
    if dim not in HEAD_DIMS:
        raise ConfigurationError(f"head_dim {dim}: the CUDA kernels have {', '.join(map(str, HEAD_DIMS))}")
    if group > MAX_GROUP:
        raise ConfigurationError(f"{group} query heads per KV head: the CUDA kernels take up to {MAX_GROUP}")
