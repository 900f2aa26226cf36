"""Tensor parallelism: what one rank keeps of each weight, and the two collectives that a layer needs.

Megatron's cut (Shoeybi et al. 2019, sec. 3): projections into heads or the intermediate axis by output
rows, projections back by input columns, then a sum over ranks. The LM head is cut by vocabulary rows and
its logits are gathered. Collectives are torch.distributed's: NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from simulator.errors import ConfigurationError

__all__ = ["SINGLE", "TensorParallel"]


class TensorParallel:
    """One rank of *size*; a process group must exist where size is above 1."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def check(self, num_heads: int, num_kv_heads: int, intermediate: int) -> None:
        """Raise ConfigurationError where the model cannot be cut into `size` parts."""
        for name, value in (("num_attention_heads", num_heads), ("intermediate_size", intermediate)):
            if value % self.size:
                raise ConfigurationError(f"tensor_parallel_size {self.size} does not divide {name} {value}")
        if num_kv_heads % self.size and self.size % num_kv_heads:
            raise ConfigurationError(f"tensor_parallel_size {self.size} does not fit {num_kv_heads} KV heads")

    def split(self, weight: Tensor, dim: int) -> Tensor:
        """This rank's equal part of *weight* along *dim*."""
        return weight if self.size == 1 else weight.chunk(self.size, dim)[self.rank]

    def split_kv(self, weight: Tensor, num_kv_heads: int) -> Tensor:
        """This rank's KV heads (output rows); with fewer heads than ranks a head is kept by several ranks."""
        if num_kv_heads >= self.size:
            return self.split(weight, 0)
        return weight.chunk(num_kv_heads, 0)[self.rank * num_kv_heads // self.size]

    def split_vocabulary(self, weight: Tensor) -> Tensor:
        """This rank's rows of an LM head, padded with zeros to equal parts."""
        if self.size == 1:
            return weight
        rows = -(-weight.shape[0] // self.size)
        part = weight[self.rank * rows : (self.rank + 1) * rows]
        return torch.nn.functional.pad(part, (0, 0, 0, rows - part.shape[0]))

    def reduce(self, x: Tensor) -> Tensor:
        """Sum of *x* over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The ranks' *x* side by side in the last dimension."""
        if self.size == 1:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        return torch.cat(parts, dim=-1)


SINGLE = TensorParallel()
