"""A decided iteration on its way through the device."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from engine.batch import Row
from engine.sequence import Sequence
from simulator.scheduling.base import Batch

__all__ = ["Forward", "Plan", "Target"]


@dataclass
class Target:
    """Whose logits a row gives: *sequences* draw a token after *stop* tokens (several where they fork
    here).
    """

    sequences: list[Sequence]
    stop: int


@dataclass
class Forward:
    """One forward pass: its rows and, for those that are sampled, the target."""

    rows: list[Row] = field(default_factory=list)
    targets: list[Target | None] = field(default_factory=list)
    sampled: list[tuple[Sequence, int]] = field(default_factory=list)
    """Who gets a token, in the order of `tokens`, and how many it has so far."""
    logits: Tensor | None = None
    tokens: Tensor | None = None


@dataclass
class Plan:
    """A decided iteration; *children* are the sequences that fork off in it, by parent."""

    batch: Batch
    children: dict[Sequence, list[Sequence]] = field(default_factory=dict)
    dropped: list[Sequence] = field(default_factory=list)
    """Sequences that the policy turned away or gave up."""
    forwards: list[Forward] = field(default_factory=list)
