"""Moving KV blocks: to host memory, back, and between places of the cache.

    t = t0 + copies · call + bytes / (eb W)

*copies* are calls that move a piece of memory each. A block has one piece per layer for K and one for V. Where every
block is a call of its own (vLLM's ``swap_blocks``, csrc/cache_kernels.cu: a ``cudaMemcpyAsync`` per block) their number
outweighs the bytes; where the blocks of a layer are gathered first there is one per layer, K and V. W is the bandwidth
of what is crossed: PCIe in one direction, or the device's own memory, where a block is read and written.
"""

from __future__ import annotations

from simulator.steptime.law_form import Number, OperatorLaw

__all__ = ["MOVES", "MoveLaw"]

MOVES = ("swap_out", "swap_in", "block_copy")


class MoveLaw(OperatorLaw):
    """Seconds for arguments (bytes moved, copies). Coefficients: ``t0`` s, ``call`` s, ``eb``."""

    def smooth(self, moved: Number, copies: Number) -> Number:
        """Begin, call, stream."""
        start = self.coefficients["t0"] + copies * self.coefficients["call"]
        return start + moved / (self.coefficients["eb"] * self.device.link)

    def coordinates(self, moved: Number, copies: Number) -> tuple[Number, ...]:
        """Bytes and copies."""
        return moved, copies

    def floor(self, moved: Number, copies: Number) -> Number:
        """The bandwidth of what is crossed."""
        return moved / self.device.link
