"""Collectives between the GPUs of one node: latency plus bytes over the link.

A ring moves f(n) = 2 (n - 1)/n of the message per GPU for an all-reduce, (n - 1)/n for all-gather, reduce-scatter and
all-to-all (message: the whole result). vLLM's *custom* all-reduce is one kernel over peer memory and wins for
small messages; NCCL wins for large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles import Law
from simulator.steptime.law_form import Grid, Number, at_least, residual_factor

__all__ = ["CUSTOM_LIMIT", "CollectiveLaw", "traffic_share"]

CUSTOM_LIMIT = 8 * 2**20
"""Largest message that vLLM hands to its custom all-reduce, bytes."""


def traffic_share(op: str, num_gpus: Number) -> Number:
    """Share of the message that every GPU sends."""
    share = (num_gpus - 1.0) / num_gpus
    return 2.0 * share if op == "all_reduce" else share


@dataclass(frozen=True, slots=True)
class CollectiveLaw:
    """Seconds of one collective of one implementation."""

    law: Law
    grid: Grid | None
    link: float
    scale: float = 1.0

    def __call__(self, message: Number, num_gpus: Number) -> Number:
        c = self.law.coefficients
        wire = traffic_share(self.law.family, num_gpus) * message / self.link  # s at the datasheet's rate
        smooth = c["t0"] + c["per_gpu"] * num_gpus + wire / c["eb"]
        seconds = smooth * residual_factor(self.grid, message, num_gpus) * self.scale
        return at_least(seconds, wire)
