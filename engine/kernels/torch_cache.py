"""Writing, copying and swapping KV blocks, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_tensors", "copy_blocks", "kv_write", "move_blocks"]


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.kv_write`."""
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long()
    k_cache.flatten(0, 1)[slots] = k[kept]
    v_cache.flatten(0, 1)[slots] = v[kept]


def copy_blocks(k_cache: Tensor, v_cache: Tensor, src: Tensor, dst: Tensor) -> None:
    """See `engine.kernels.interface.Kernels.copy_blocks`."""
    for cache in (k_cache, v_cache):
        cache[dst] = cache[src]


def as_tensors(cache: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A cache as a list of tensors whose first dimension is the block."""
    return [cache] if isinstance(cache, Tensor) else list(cache)


def move_blocks(
    source: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    block_pairs: Sequence[tuple[int, int]],
    coalesced: bool,
) -> None:
    """Copy blocks ``(source, target)`` between two memories, tensor by tensor."""
    if not block_pairs:
        return
    for src, dst in zip(as_tensors(source), as_tensors(target), strict=True):
        if coalesced:
            _move_at_once(src, dst, block_pairs)
        else:
            for i, j in block_pairs:
                dst[j].copy_(src[i], non_blocking=True)


def _move_at_once(src: Tensor, dst: Tensor, block_pairs: Sequence[tuple[int, int]]) -> None:
    """Gather, one transfer, scatter. The gather waits for nothing; the transfer is awaited by the scatter."""
    pairs = torch.tensor(block_pairs)
    gathered = src.index_select(0, pairs[:, 0].to(src.device))
    dst.index_copy_(0, pairs[:, 1].to(dst.device), gathered.to(dst.device))
