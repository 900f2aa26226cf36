"""What moving KV blocks costs an iteration: out to host memory, back in, and copied on the device (copy-on-write).

A deployment knows the costs (`simulator.techniques.equipment`); a policy only counts the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FREE", "BlockMoves", "MoveCost"]


@dataclass(frozen=True, slots=True)
class MoveCost:
    """Seconds of moving *n* blocks together: *start_s* once, *block_s* for each; nothing for none."""

    start_s: float = 0.0
    block_s: float = 0.0

    def seconds(self, n: int) -> float:
        """Of *n* blocks."""
        return self.start_s + n * self.block_s if n else 0.0


@dataclass(frozen=True, slots=True)
class BlockMoves:
    """The cost in each direction."""

    swap_in: MoveCost = MoveCost()
    swap_out: MoveCost = MoveCost()
    copy: MoveCost = MoveCost()


FREE = BlockMoves()
