"""How one replica of a model is cut over GPUs.

Tensor parallelism cuts every layer (Megatron-LM, arXiv 1909.08053), pipeline parallelism the stack of layers,
expert parallelism hands whole experts to ranks, attention data parallelism gives every rank group its own
sequences while all share the experts (DeepSeek-V3, arXiv 2412.19437, section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import ConfigurationError

__all__ = ["Parallelism"]


@dataclass(frozen=True)
class Parallelism:
    """Sizes of the groups; experts are spread over ``moe_tp`` x ``moe_ep`` = ``tp`` x ``dp`` ranks.

    *moe_ep* 1 cuts every expert over all ranks, *moe_ep* equal to the ranks gives each whole experts. *dcp* of the
    ``tp`` ranks spread the KV of a sequence among them, *pcp* times as many GPUs the tokens of a prompt.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    moe_ep: int = 1
    dcp: int = 1
    pcp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "moe_ep", "dcp", "pcp"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} size {getattr(self, name)} must be at least 1")
        if self.ranks % self.moe_ep:
            raise ConfigurationError(f"expert parallel size {self.moe_ep} must divide tp x dp = {self.ranks}")

    @property
    def ranks(self) -> int:
        """GPUs of one pipeline stage."""
        return self.tp * self.dp

    @property
    def moe_tp(self) -> int:
        """Ranks over which each expert is cut."""
        return self.ranks // self.moe_ep

    @property
    def context_ranks(self) -> int:
        """Ranks over which the KV of a sequence is spread by position."""
        return self.dcp * self.pcp

    @property
    def num_gpus(self) -> int:
        """GPUs of the replica."""
        return self.ranks * self.pp * self.pcp
