"""Inputs for `engine.kernels.conformance`: attention shapes, poisoned caches, and the error allowed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Case", "assert_as_good", "attention_cases", "make_cache", "strided"]

FACTOR, FLOOR = 3.0, 1e-5  # FlashAttention's rule: error <= 3 x the plain formula's + 1e-5
GARBAGE = 2_147_480_000  # a block number that no cache has


@dataclass(frozen=True)
class Case:
    """Shapes of one attention call."""

    dim: int = 64
    group: int = 4
    kv_heads: int = 2
    block_size: int = 16
    contexts: tuple[int, ...] = (0, 1, 17, 70)
    queries: tuple[int, ...] = (0, 1, 17, 23)
    window: int = 0
    splits: int = 0

    @property
    def name(self) -> str:
        parts = f"d{self.dim}-g{self.group}-b{self.block_size}-s{self.splits}"
        return f"{parts}-w{self.window}-c{'_'.join(map(str, self.contexts))}"


def attention_cases() -> list[Case]:
    """Every head dim, group size, block size, and the edges of lengths, windows and splits."""
    base = Case()
    return [
        *(replace(base, dim=dim) for dim in (64, 96, 128, 256)),
        *(replace(base, group=group, kv_heads=1) for group in range(1, 17)),
        *(replace(base, block_size=size) for size in (1, 32)),
        replace(base, dim=128, contexts=(200, 0, 129, 64), queries=(66, 0, 129, 1), splits=3),
        replace(base, contexts=(1, 2, 300), queries=(1, 1, 130), splits=7, block_size=32),
        replace(base, contexts=(90, 3, 41), queries=(50, 3, 1), window=7),
        replace(base, dim=96, contexts=(150, 64), queries=(150, 33), window=64, splits=2),
        replace(base, contexts=(0, 0), queries=(0, 0)),
    ]


@dataclass
class Cache:
    """A paged cache and, beside it, each sequence's keys and values as they are."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def make_cache(case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Cache:
    """Random keys and values in shuffled blocks; NaN and garbage everywhere else."""
    draw = torch.Generator().manual_seed(seed)
    size, shape = case.block_size, (case.kv_heads, case.dim)
    needed = [-(-context // size) for context in case.contexts]
    order = torch.randperm(sum(needed) + 3, generator=draw).tolist()
    caches = [torch.full((len(order), size, *shape), torch.nan, dtype=dtype) for _ in range(2)]
    # A slice of a wider table, as an engine's buffer is; unused entries are garbage.
    table = torch.full((len(case.contexts), max(needed) + 5), GARBAGE, dtype=torch.int32)[:, :-3]
    lens = torch.tensor(case.contexts, dtype=torch.int32)
    cache = Cache(caches[0], caches[1], table, lens)
    for row, context in enumerate(case.contexts):
        blocks = [order.pop() for _ in range(needed[row])]
        table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        for side, kept in zip(caches, (cache.keys, cache.values), strict=True):
            tokens = torch.randn(context, *shape, generator=draw).to(dtype)
            kept.append(tokens.to(device))
            for position in range(context):
                side[blocks[position // size], position % size] = tokens[position]
    cache.k_cache, cache.v_cache = cache.k_cache.to(device), cache.v_cache.to(device)
    cache.block_table, cache.context_lens = table.to(device), lens.to(device)
    return cache


def assert_as_good(got: Tensor, exact: Tensor, plain: Tensor, what: str) -> None:
    """The error's largest value against that of the plain formula in the same dtype."""
    assert not got.isnan().any(), f"{what}: NaN"
    if got.numel() == 0:
        return
    error = (got.double() - exact).abs().max().item()
    allowed = FACTOR * (plain.double() - exact).abs().max().item() + FLOOR
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def strided(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Random rows inside wider ones, as a slice of a fused QKV is."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(shape[0], shape[1] + 3, *shape[2:], generator=draw)
    return wide.to(dtype).to(device)[:, 2:-1]
