"""What others offer for the same attention: torch SDPA, FlexAttention and, where it is installed, FlashInfer.

Each builds calls that compute what ours compute, from the same numbers: the first two from contiguous K and
V (they know no pages, so they get them for free), FlashInfer from the pages. `UnavailableError` says why one
cannot run.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.kernels.timing import Call

__all__ = ["DECODE_RIVALS", "PREFILL_RIVALS", "Problem", "UnavailableError"]


class UnavailableError(Exception):
    """A rival that cannot run here."""


@dataclass
class Problem:
    """One attention call. Decode: one query per sequence; prefill: *chunk* queries each, all sequences
    alike."""

    q: Tensor  # [B * chunk, heads, dim]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    contexts: list[int]
    chunk: int
    scale: float
    out: Tensor

    @functools.cached_property
    def contiguous(self) -> tuple[Tensor, Tensor]:
        """K and V ``[B, kv_heads, L, dim]`` in the order of tokens, for sequences of one length."""
        if len(set(self.contexts)) > 1:
            raise UnavailableError("contexts differ in length")
        length, block_size = self.contexts[0], self.k_cache.shape[1]
        blocks = self.block_table[:, : -(-length // block_size)].long()
        sides = (cache[blocks].flatten(1, 2)[:, :length] for cache in (self.k_cache, self.v_cache))
        k, v = (side.transpose(1, 2).contiguous() for side in sides)
        return k, v

    @property
    def queries(self) -> Tensor:
        """*q* as ``[B, heads, chunk, dim]``."""
        heads, dim = self.q.shape[1:]
        return self.q.view(-1, self.chunk, heads, dim).transpose(1, 2)


def sdpa_grouped(problem: Problem) -> Call:
    """Decode with a KV head's group in the place of query positions."""
    k, v = problem.contiguous
    batch, kv_heads, _, dim = k.shape
    q = problem.q.view(batch, kv_heads, -1, dim)
    return lambda: scaled_dot_product_attention(q, k, v, scale=problem.scale)


def sdpa_decode(problem: Problem) -> Call:
    k, v = problem.contiguous
    q = problem.queries
    return lambda: scaled_dot_product_attention(q, k, v, scale=problem.scale, enable_gqa=True)


def sdpa_prefill(problem: Problem) -> Call:
    from torch.nn.attention.bias import causal_lower_right

    k, v = problem.contiguous
    q = problem.queries.contiguous()
    length = k.shape[2]
    if problem.chunk == length:
        return lambda: scaled_dot_product_attention(
            q, k, v, scale=problem.scale, is_causal=True, enable_gqa=True
        )
    bias: Any = causal_lower_right(problem.chunk, length)
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=problem.scale, enable_gqa=True)


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    import torch._dynamo.config as dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # Every shape is compiled for itself; from the ninth on torch would run it uncompiled, and the comparison be unfair.
    setattr(dynamo, "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit", 64)
    return torch.compile(flex_attention, dynamic=False)


def flex_decode(problem: Problem) -> Call:
    if problem.q.device.type != "cuda":
        raise UnavailableError("FlexAttention is compiled for GPUs")
    k, v = problem.contiguous
    q = problem.queries
    flex = compiled_flex()
    return lambda: flex(q, k, v, scale=problem.scale, enable_gqa=True)


def flex_prefill(problem: Problem) -> Call:
    if problem.q.device.type != "cuda":
        raise UnavailableError("FlexAttention is compiled for GPUs")
    from torch.nn.attention.flex_attention import create_block_mask

    k, v = problem.contiguous
    q, length = problem.queries.contiguous(), k.shape[2]
    before = length - problem.chunk

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query + before >= key

    mask = create_block_mask(causal, None, None, problem.chunk, length, device=str(q.device))
    flex = compiled_flex()
    return lambda: flex(q, k, v, block_mask=mask, scale=problem.scale, enable_gqa=True)


def import_flashinfer() -> Any:
    if importlib.util.find_spec("flashinfer") is None:
        raise UnavailableError("flashinfer is not installed")
    import flashinfer  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return flashinfer


def pages_of(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Page numbers of all sequences in a row, where each begins, and how full the last page is."""
    block_size = problem.k_cache.shape[1]
    counts = [-(-context // block_size) for context in problem.contexts]
    indices = torch.cat([problem.block_table[row, :count] for row, count in enumerate(counts)])
    device = problem.q.device
    starts = torch.tensor([0, *counts], dtype=torch.int32, device=device).cumsum(0).int()
    full = [
        context - (count - 1) * block_size for context, count in zip(problem.contexts, counts, strict=True)
    ]
    return indices, starts, torch.tensor(full, dtype=torch.int32, device=device)


def workspace(device: torch.device) -> Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device=device)


def flashinfer_decode(problem: Problem) -> Call:
    module = import_flashinfer()
    wrapper = module.BatchDecodeWithPagedKVCacheWrapper(
        workspace(problem.q.device), "NHD", use_tensor_cores=True
    )
    indices, starts, last = pages_of(problem)
    _, block_size, kv_heads, dim = problem.k_cache.shape
    heads, dtype = problem.q.shape[1], problem.q.dtype
    wrapper.plan(
        starts,
        indices,
        last,
        heads,
        kv_heads,
        dim,
        block_size,
        q_data_type=dtype,
        kv_data_type=dtype,
        sm_scale=problem.scale,
    )
    return lambda: wrapper.run(problem.q, (problem.k_cache, problem.v_cache))


def flashinfer_prefill(problem: Problem) -> Call:
    module = import_flashinfer()
    wrapper = module.BatchPrefillWithPagedKVCacheWrapper(workspace(problem.q.device), "NHD")
    indices, starts, last = pages_of(problem)
    _, block_size, kv_heads, dim = problem.k_cache.shape
    batch, device = len(problem.contexts), problem.q.device
    query_start = torch.arange(batch + 1, dtype=torch.int32, device=device) * problem.chunk
    wrapper.plan(
        query_start,
        starts,
        indices,
        last,
        problem.q.shape[1],
        kv_heads,
        dim,
        block_size,
        causal=True,
        q_data_type=problem.q.dtype,
        kv_data_type=problem.q.dtype,
        sm_scale=problem.scale,
    )
    return lambda: wrapper.run(problem.q, (problem.k_cache, problem.v_cache))


DECODE_RIVALS: dict[str, Callable[[Problem], Call]] = {
    "sdpa": sdpa_decode,
    "sdpa grouped": sdpa_grouped,
    "flex": flex_decode,
    "flashinfer": flashinfer_decode,
}
PREFILL_RIVALS: dict[str, Callable[[Problem], Call]] = {
    "sdpa": sdpa_prefill,
    "flex": flex_prefill,
    "flashinfer": flashinfer_prefill,
}
