# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803  (compile-time arguments are in capitals, as is the custom)
"""Attention over pages in Triton: the same algorithms as the CUDA form, with tiles as values.

Decode is split over the context and merged, with a KV head's query group as the rows of one product;
prefill packs (token, head of the group) into rows and walks over the context, first the tiles that every
row sees whole, then those that need a mask. Rows behind the end are neither read nor seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Tiles", "default_tiles", "launch_decode", "launch_merge", "launch_prefill"]


@triton.jit
def find_rows(table, position, visible, head, block_size, kv_heads, DIM: tl.constexpr):
    """Element offsets of the KV rows of *position* for one head; 0 where not *visible*."""
    block = tl.load(table + position // block_size, mask=visible, other=0).to(tl.int64)
    return ((block * block_size + position % block_size) * kv_heads + head) * DIM


@triton.jit
def chunk_of(tokens, num_splits, min_chunk, TILE: tl.constexpr):
    """Tokens per split; the merge computes the same."""
    even = tl.maximum(tl.cdiv(tokens, num_splits), min_chunk)
    return tl.cdiv(even, TILE) * TILE


@triton.jit
def decode_kernel(
    out, partial, log_sum, q, k_cache, v_cache, block_table, context_lens, scale_log2, heads, kv_heads,
    block_size,
    table_stride, q_stride, num_splits, min_chunk, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (split, KV head, sequence)."""
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lens + sequence)
    oldest = 0
    if window > 0:
        oldest = tl.maximum(context - window, 0)
    chunk = chunk_of(context - oldest, num_splits, min_chunk, TILE)
    begin = oldest + split * chunk
    end = tl.minimum(begin + chunk, context)
    splits = tl.cdiv(context - oldest, chunk)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < GROUP)[:, None] & (column < DIM)[None, :]
    place = row[:, None] * DIM + column[None, :]
    first_head = head * GROUP
    target = out + (sequence.to(tl.int64) * heads + first_head) * DIM + place
    if (splits == 0) & (split == 0):
        tl.store(target, tl.zeros((ROWS, WIDTH), tl.float32).to(out.dtype.element_ty), mask=inside)
    if split < splits:
        queries = tl.load(q + sequence * q_stride + first_head * DIM + place, mask=inside, other=0.0)
        table = block_table + sequence.to(tl.int64) * table_stride
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        value = tl.zeros((ROWS, WIDTH), tl.float32)
        for start in tl.range(begin, end, TILE):
            position = start + tl.arange(0, TILE)
            visible = position < end
            offset = find_rows(table, position, visible, head, block_size, kv_heads, DIM)
            mask = visible[:, None] & (column < DIM)[None, :]
            k = tl.load(k_cache + offset[:, None] + column[None, :], mask=mask, other=0.0)
            score = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale_log2
            score = tl.where(visible[None, :], score, float("-inf"))
            higher = tl.maximum(maximum, tl.max(score, axis=1))
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(maximum - higher)
            v = tl.load(v_cache + offset[:, None] + column[None, :], mask=mask, other=0.0)
            value = value * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            total = total * shrink + tl.sum(p, axis=1)
            maximum = higher
        value = value / total[:, None]
        if splits == 1:
            tl.store(target, value.to(out.dtype.element_ty), mask=inside)
        else:
            at = (split.to(tl.int64) * tl.num_programs(2) + sequence) * heads + first_head
            tl.store(partial + at * DIM + place, value, mask=inside)
            tl.store(log_sum + at + row, maximum + tl.log2(total), mask=row < GROUP)


@triton.jit
def merge_kernel(
    out, partial, log_sum, context_lens, rows, heads, num_splits, min_chunk, window,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (sequence × head): the splits' outputs weighted by their softmax sums."""
    row = tl.program_id(0)
    context = tl.load(context_lens + row // heads)
    tokens = context
    if window > 0:
        tokens = tl.minimum(context, window)
    splits = tl.cdiv(tokens, chunk_of(tokens, num_splits, min_chunk, TILE))
    if splits > 1:
        column = tl.arange(0, WIDTH)
        maximum = float("-inf")
        for split in range(splits):
            maximum = tl.maximum(maximum, tl.load(log_sum + split * rows + row))
        total = 0.0
        value = tl.zeros((WIDTH,), tl.float32)
        for split in range(splits):
            at = row.to(tl.int64) + split * rows
            weight = tl.exp2(tl.load(log_sum + at) - maximum)
            total += weight
            value += weight * tl.load(partial + at * DIM + column, mask=column < DIM, other=0.0)
        place = out + row.to(tl.int64) * DIM + column
        tl.store(place, (value / total).to(out.dtype.element_ty), mask=column < DIM)


@triton.jit
def attend(
    value, maximum, total, queries, k_cache, v_cache, table, last, begin, end, head, block_size,
    kv_heads, scale_log2,
    window, MASKED: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One walk over KV rows *begin* to *end*; row *i* may see up to position ``last[i]``."""
    column = tl.arange(0, WIDTH)
    for start in tl.range(begin, end, TILE):
        position = start + tl.arange(0, TILE)
        visible = position < end
        offset = find_rows(table, position, visible, head, block_size, kv_heads, DIM)
        mask = visible[:, None] & (column < DIM)[None, :]
        k = tl.load(k_cache + offset[:, None] + column[None, :], mask=mask, other=0.0)
        score = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale_log2
        if MASKED:
            seen = position[None, :] <= last[:, None]
            if window > 0:
                seen = seen & (position[None, :] > last[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(maximum, tl.max(score, axis=1))
        base = higher
        if MASKED:  # a row that has seen nothing yet
            base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(score - base[:, None])
        shrink = tl.exp2(maximum - base)
        v = tl.load(v_cache + offset[:, None] + column[None, :], mask=mask, other=0.0)
        value = value * shrink[:, None]
        value = tl.dot(p.to(v.dtype), v, value, input_precision="ieee")
        total = total * shrink + tl.sum(p, axis=1)
        maximum = higher
    return value, maximum, total


@triton.jit
def prefill_kernel(
    out, q, k_cache, v_cache, block_table, query_start, context_lens, scale_log2, heads, kv_heads, block_size,
    table_stride, q_stride, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (query tile, KV head, sequence); later tiles, which see more, come first."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    start = tl.load(query_start + sequence)
    tokens = tl.load(query_start + sequence + 1) - start
    count = tokens * GROUP
    if first < count:
        before = tl.load(context_lens + sequence) - tokens
        packed = first + tl.arange(0, ROWS)
        column = tl.arange(0, WIDTH)
        token = packed // GROUP
        inside = (packed < count)[:, None] & (column < DIM)[None, :]
        within = ((head * GROUP + packed % GROUP) * DIM)[:, None] + column[None, :]
        source = q + (start + token).to(tl.int64)[:, None] * q_stride + within
        queries = tl.load(source, mask=inside, other=0.0)
        last = before + tl.minimum(token, tokens - 1)
        end = before + tl.minimum((first + ROWS - 1) // GROUP, tokens - 1) + 1
        # Every row sees all of [0, whole) when there is no window.
        whole = (before + first // GROUP + 1) // TILE * TILE
        begin = 0
        if window > 0:
            begin = tl.maximum(before + first // GROUP - window + 1, 0)
            whole = begin
        table = block_table + sequence.to(tl.int64) * table_stride
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        value = tl.zeros((ROWS, WIDTH), tl.float32)
        value, maximum, total = attend(
            value, maximum, total, queries, k_cache, v_cache, table, last, begin, whole, head,
            block_size, kv_heads,
            scale_log2, window, False, DIM, WIDTH, TILE,
        )  # fmt: skip
        value, maximum, total = attend(
            value, maximum, total, queries, k_cache, v_cache, table, last, whole, end, head, block_size,
            kv_heads,
            scale_log2, window, True, DIM, WIDTH, TILE,
        )  # fmt: skip
        target = out + (start + token).to(tl.int64)[:, None] * (heads * DIM) + within
        tl.store(target, (value / total[:, None]).to(out.dtype.element_ty), mask=inside)


LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tiles:
    """Shape of a prefill program: query rows, KV rows of a step, warps, steps under way."""

    rows: int
    columns: int
    warps: int
    stages: int


def default_tiles(dim: int, element_size: int) -> Tiles:
    """What fits in shared memory and registers; `engine.bench_kernels --sweep` measures others."""
    rows = 128 if dim * element_size <= 256 else 64
    columns, stages = tile_of(dim, element_size), stages_of(dim, element_size)
    return Tiles(rows, columns, 8 if rows == 128 else 4, stages)


def tile_of(dim: int, element_size: int) -> int:
    """KV rows of a tile, so that three stages of K and V fit in shared memory."""
    return 64 if dim * element_size <= 256 else 32


def stages_of(dim: int, element_size: int) -> int:
    """Depth of the pipeline over tiles; rows of 1 KiB leave room for two."""
    return 3 if dim * element_size <= 512 else 2


def launch_decode(
    out: Tensor,
    partial: Tensor,
    log_sum: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    splits: int,
    min_chunk: int,
    window: int,
) -> None:
    """The split launch; see `engine.kernels.interface.Kernels.decode_attention`."""
    batch, heads, dim = q.shape
    _, block_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    decode_kernel[(splits, kv_heads, batch)](
        out,
        partial,
        log_sum,
        q,
        k_cache,
        v_cache,
        block_table,
        context_lens,
        scale * LOG2_E,
        heads,
        kv_heads,
        block_size,
        block_table.stride(0),
        q.stride(0),
        splits,
        min_chunk,
        window,
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        DIM=dim,
        WIDTH=triton.next_power_of_2(dim),
        TILE=tile_of(dim, q.element_size()),
        num_warps=4,
        num_stages=stages_of(dim, q.element_size()),
    )


def launch_merge(
    out: Tensor,
    partial: Tensor,
    log_sum: Tensor,
    context_lens: Tensor,
    splits: int,
    min_chunk: int,
    window: int,
) -> None:
    """The merge launch of the same call."""
    batch, heads, dim = out.shape
    merge_kernel[(batch * heads,)](
        out,
        partial,
        log_sum,
        context_lens,
        batch * heads,
        heads,
        splits,
        min_chunk,
        window,
        DIM=dim,
        WIDTH=triton.next_power_of_2(dim),
        TILE=tile_of(dim, out.element_size()),
        num_warps=1,
    )


def launch_prefill(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scale: float,
    max_query: int,
    window: int,
    tiles: Tiles | None = None,
) -> None:
    """See `engine.kernels.interface.Kernels.prefill_attention`."""
    _, heads, dim = q.shape
    _, block_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    tiles = tiles or default_tiles(dim, q.element_size())
    prefill_kernel[(triton.cdiv(max_query * group, tiles.rows), kv_heads, context_lens.shape[0])](
        out,
        q,
        k_cache,
        v_cache,
        block_table,
        query_start,
        context_lens,
        scale * LOG2_E,
        heads,
        kv_heads,
        block_size,
        block_table.stride(0),
        q.stride(0),
        window,
        GROUP=group,
        ROWS=tiles.rows,
        DIM=dim,
        WIDTH=triton.next_power_of_2(dim),
        TILE=tiles.columns,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
