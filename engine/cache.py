"""The paged KV cache: per layer two tensors ``[num_blocks, block_size, num_kv_heads, head_dim]``, and
pinned host blocks.

How many blocks there are follows from what the device has left beside the weights and the activation peak of
the largest batch, which is measured by running one (`engine.profile`), as vLLM does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels import Kernels
from simulator.errors import CapacityError

__all__ = ["KVCache", "Pairs"]

Pairs = Sequence[tuple[int, int]]


class KVCache:
    """*num_blocks* device blocks of *block_size* tokens for each of *num_layers*, and *num_host_blocks* to
    swap to.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        kernels: Kernels,
        dtype: torch.dtype,
        num_host_blocks: int = 0,
        num_scratch: int = 0,
    ) -> None:
        if num_blocks < 1:
            raise CapacityError(
                f"the KV cache would have {num_blocks} blocks: the device has no memory left for it"
            )
        self.num_blocks, self.block_size, self.num_host_blocks = num_blocks, block_size, num_host_blocks
        self.num_scratch = num_scratch
        """Blocks behind the others that no scheduler knows of."""
        self.kernels = kernels
        shape = (num_layers, 2, num_blocks + num_scratch, block_size, num_kv_heads, head_dim)
        self.data = torch.zeros(shape, dtype=dtype, device=kernels.device)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.data]
        self.host: Tensor | None = None
        if num_host_blocks:
            pin = kernels.device.type == "cuda"
            self.host = torch.zeros((num_layers, 2, num_host_blocks, *shape[3:]), dtype=dtype, pin_memory=pin)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers, K and V."""
        return self.data[:, :, 0].numel() * self.data.element_size()

    def copy(self, pairs: Pairs) -> None:
        """Copy blocks ``(from, to)`` in every layer (copy-on-write)."""
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=self.data.device).unbind(1)
        for keys, values in self.layers:
            self.kernels.copy_blocks(keys, values, source, target)

    def swap_out(self, pairs: Pairs, coalesced: bool = True) -> None:
        """Copy blocks ``(device, host)`` to the host; *coalesced*: those of a layer at once."""
        if pairs:
            self.kernels.swap_out(*self._sides(), list(pairs), coalesced)

    def swap_in(self, pairs: Pairs, coalesced: bool = True) -> None:
        """Copy blocks ``(host, device)`` back."""
        if pairs:
            self.kernels.swap_in(*self._sides(), list(pairs), coalesced)

    def _sides(self) -> tuple[list[Tensor], list[Tensor]]:
        if self.host is None:
            raise CapacityError(
                "the scheduler swaps, and the engine has no host blocks: give swap_space_blocks"
            )
        return list(self.data.flatten(0, 1)), list(self.host.flatten(0, 1))
