"""Decode steps as CUDA graphs: one launch instead of several hundred.

A graph is captured for each of a ladder of batch sizes, the largest first so that all share one memory
pool, over buffers that never move. A smaller batch is padded up to the next size: rows with slot -1 and
context 0 write nothing and attend to nothing. Attention's launch is sized for the longest context a
captured step may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import BatchInput
from engine.cache import KVCache
from engine.model import Decoder, Layout

__all__ = ["DecodeGraphs", "capture_sizes"]


def capture_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 up to *max_num_seqs* (vLLM's ladder); beyond 256 every 32."""
    ladder = [1, 2, 4, *range(8, 257, 8), *range(288, 1025, 32)]
    sizes = [size for size in ladder if size < max_num_seqs]
    return [*sizes, max_num_seqs]


class DecodeGraphs:
    """Captured decode steps of *sizes* sequences with at most *max_context* tokens each."""

    def __init__(self, decoder: Decoder, cache: KVCache, sizes: Sequence[int], max_context: int) -> None:
        self.decoder, self.cache, self.max_context = decoder, cache, max_context
        self.sizes = sorted(sizes)
        largest, device = self.sizes[-1], decoder.device
        blocks = -(-max_context // cache.block_size)
        self.tokens = torch.zeros(largest, dtype=torch.int64, device=device)
        self.positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self.slots = torch.full((largest,), -1, dtype=torch.int64, device=device)
        self.table = torch.zeros((largest, blocks), dtype=torch.int32, device=device)
        self.lens = torch.zeros(largest, dtype=torch.int32, device=device)
        self.hidden: dict[int, Tensor] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Capture every size, the largest first."""
        pool = None
        for size in reversed(self.sizes):
            layout = self._layout(size)
            self.decoder.forward(
                self.tokens[:size], layout, self.cache
            )  # warm-up: libraries choose their kernels
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.hidden[size] = self.decoder.forward(self.tokens[:size], layout, self.cache)
            pool = pool or graph.pool()
            self.graphs[size] = graph

    def _layout(self, size: int) -> Layout:
        return Layout(
            positions=self.positions[:size],
            slots=self.slots[:size],
            num_decodes=size,
            decode_table=self.table[:size],
            decode_lens=self.lens[:size],
            max_context=self.max_context,
        )

    def size_for(self, batch: BatchInput) -> int:
        """The captured size that *batch* runs as, 0 where it must run eagerly."""
        n = batch.num_decodes
        if (
            not n
            or len(batch.prefill_lens)
            or n > self.sizes[-1]
            or int(batch.decode_lens.max()) > self.max_context
        ):
            return 0
        return next(size for size in self.sizes if size >= n)

    def load(self, batch: BatchInput, size: int) -> None:
        """Fill the buffers; rows from the batch's end to *size* become padding."""
        n = batch.num_decodes
        self.slots[n:size] = -1
        self.lens[n:size] = 0
        self.positions[n:size] = 0
        pairs = (
            (self.tokens, batch.tokens),
            (self.positions, batch.positions),
            (self.slots, batch.slots),
            (self.lens, batch.decode_lens),
        )
        for buffer, array in pairs:
            buffer[:n].copy_(self._staged(array), non_blocking=True)
        width = batch.decode_table.shape[1]
        self.table[:n, :width].copy_(self._staged(batch.decode_table), non_blocking=True)

    def _staged(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.decoder.device.type == "cuda" else tensor

    def replay(self, size: int) -> Tensor:
        """Hidden states ``[size, hidden]`` of the loaded batch; overwritten by the next replay."""
        self.graphs[size].replay()
        return self.hidden[size]
