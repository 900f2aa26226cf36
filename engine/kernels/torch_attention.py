"""Attention over pages, in torch: gather the pages, then scaled dot product attention.

The gather copies K and V once more than a kernel would; in return it runs anywhere and is plain to read.
The reference for the other forms, and the CPU path.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = ["decode_attention", "gather_pages", "prefill_attention"]


def decode_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context: int | None = None,
    sliding_window: int = 0,
) -> None:
    """See `engine.kernels.interface.Kernels.decode_attention`.

    On a CPU sequences of similar length are computed together: padding all to the longest would make a batch as slow
    as its longest sequence, where a kernel takes the time of the sum.
    """
    groups = [] if q.is_cuda else similar_lengths(context_lens.tolist())
    if len(groups) < 2:
        out.copy_(
            _decode_padded(q, k_cache, v_cache, block_table, context_lens, scale, max_context, sliding_window)
        )
        return
    for group in groups:
        rows = torch.tensor(group)
        lens = context_lens[rows]
        part = _decode_padded(
            q[rows], k_cache, v_cache, block_table[rows], lens, scale, int(lens.max()), sliding_window
        )
        out[rows] = part


def similar_lengths(lens: list[int]) -> list[list[int]]:
    """Rows in groups in which none is shorter than `LEAST_FILLED` of the longest, unless that is short itself."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lens)), key=lambda row: -lens[row]):
        longest = lens[groups[-1][0]] if groups else 0
        if groups and (longest <= SHORT or lens[row] >= LEAST_FILLED * longest):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


LEAST_FILLED, SHORT = 0.5, 64
"""A group costs about what a hundred padded tokens do: much finer groups do not pay, nor does splitting short ones."""


def _decode_padded(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context: int | None,
    sliding_window: int,
) -> Tensor:
    """``[batch, num_heads, head_dim]``, every sequence padded to the longest."""
    batch, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    bound = max_context if max_context is not None else int(context_lens.max()) if batch else 0
    if bound == 0:
        return torch.zeros_like(q)
    position = torch.arange(bound, device=q.device)
    visible = position < context_lens[:, None]  # [B, L]
    if sliding_window:
        visible &= position >= context_lens[:, None] - sliding_window
    k, v = gather_pages(k_cache, v_cache, block_table, visible)
    # A group's query heads take the place of query positions: K and V are read once for all of them.
    grouped = q.view(batch, kv_heads, heads // kv_heads, dim)
    mask = visible[:, None, None, :]
    result = scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
    empty = (context_lens == 0)[:, None, None]
    return result.reshape(batch, heads, dim).masked_fill_(empty, 0)


def gather_pages(k_cache: Tensor, v_cache: Tensor, table: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """K and V ``[B, num_kv_heads, L, head_dim]`` in the order of tokens.

    Zeros where *visible* ``[B, L]`` is not set.
    """
    block_size, length = k_cache.shape[1], visible.shape[1]
    count = -(-length // block_size)
    padded = pad(visible, (0, count * block_size - length))
    # A block of which nothing can be seen is not read either: its entry in the table may be any number.
    wanted = padded.view(-1, count, block_size).any(dim=-1)
    blocks = torch.where(wanted, table[:, :count], 0).long()
    k, v = (cache[blocks].flatten(1, 2)[:, :length] for cache in (k_cache, v_cache))
    hidden = ~visible
    if hidden.any():
        for side in (k, v):
            side.masked_fill_(hidden[:, :, None, None], 0)
    return k.transpose(1, 2), v.transpose(1, 2)


def prefill_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scale: float,
    sliding_window: int = 0,
) -> None:
    """See `engine.kernels.interface.Kernels.prefill_attention`."""
    starts = query_start.tolist()
    for row, context in enumerate(context_lens.tolist()):
        rows = slice(starts[row], starts[row + 1])
        if rows.stop > rows.start:
            table = block_table[row : row + 1]
            out[rows] = _attend_chunk(q[rows], k_cache, v_cache, table, context, scale, sliding_window)


def _attend_chunk(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, context: int, scale: float, window: int
) -> Tensor:
    """One sequence's chunk ``[query, num_heads, head_dim]`` against its context."""
    query, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    k, v = gather_pages(k_cache, v_cache, table, torch.ones(1, context, dtype=torch.bool, device=q.device))
    group = heads // kv_heads
    shape = (kv_heads, group, context, dim)
    k, v = k[0, :, None].expand(shape), v[0, :, None].expand(shape)
    grouped = q.view(query, kv_heads, group, dim).permute(1, 2, 0, 3)
    whole = query == context and not window
    mask = None if whole or query == 1 else _causal_mask(query, context, window, q.device)
    if query == 1 and window:
        k, v = k[:, :, -window:], v[:, :, -window:]
    result = scaled_dot_product_attention(grouped, k, v, attn_mask=mask, is_causal=whole, scale=scale)
    return result.permute(2, 0, 1, 3).reshape(query, heads, dim)


def _causal_mask(query: int, context: int, window: int, device: torch.device) -> Tensor:
    """Bool ``[query, context]``: the last query sees the whole context, each earlier one a token less."""
    last_seen = torch.arange(context - query, context, device=device)[:, None]
    position = torch.arange(context, device=device)
    mask = position <= last_seen
    return mask & (position > last_seen - window) if window else mask
