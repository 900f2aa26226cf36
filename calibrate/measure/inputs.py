"""Random inputs of the operators: numbers, heads, and sequences whose blocks lie scattered over the whole cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.cache import KVCache
from engine.model import Decoder

__all__ = ["Inputs"]


class Inputs:
    """Draws for *decoder* over *cache*, the same for the same *seed*."""

    def __init__(self, decoder: Decoder, cache: KVCache, seed: int) -> None:
        self.decoder, self.cache, self.seed = decoder, cache, seed
        self.config, self.device, self.dtype = decoder.config, decoder.device, decoder.dtype

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def qkv(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of *tokens* tokens."""
        dim, kv = self.config.head_dim, self.decoder.num_kv_heads
        return (
            self.random(tokens, self.decoder.num_heads, dim),
            *(self.random(tokens, kv, dim) for _ in "kv"),
        )  # type: ignore[return-value]

    def ints(self, values: list[int]) -> Tensor:
        """int32 on the device."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def table(self, lens: list[int]) -> Tensor:
        """Blocks for sequences of *lens* tokens, each its own, in random order."""
        counts = [-(-length // self.cache.block_size) for length in lens]
        order = np.random.default_rng(self.seed).permutation(self.cache.num_blocks)[: sum(counts)]
        table = np.zeros((len(lens), max(counts)), dtype=np.int32)
        for row, part in zip(table, np.split(order, np.cumsum(counts)[:-1])):
            row[: len(part)] = part
        return torch.from_numpy(table).to(self.device)

    def slots(self, table: Tensor, starts: list[int], count: int) -> Tensor:
        """Where *count* new tokens of every sequence go, int64, packed."""
        size = self.cache.block_size
        places = torch.tensor(starts)[:, None] + torch.arange(count)
        blocks = table.cpu().long().gather(1, places // size)
        return (blocks * size + places % size).flatten().to(self.device)

    def order(self, count: int, pattern: str) -> list[int]:
        """Blocks in random order, or one after the other."""
        if pattern in ("run", "coalesced"):
            return list(range(count))
        return [int(block) for block in np.random.default_rng(self.seed).permutation(count)]
