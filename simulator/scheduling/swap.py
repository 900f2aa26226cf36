"""Host memory for the KV blocks of preempted sequences.

Swapping moves blocks over the host link instead of computing them again. vLLM up to 0.6 sizes the space with
``--swap-space`` (GiB) and dies when it is full (core/scheduler.py, ``_swap_out``).
"""

from __future__ import annotations

from simulator.errors import CapacityError, ConfigurationError

__all__ = ["SwapSpace"]


class SwapSpace:
    """*num_blocks* KV blocks in host memory, counted."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ConfigurationError(f"num_cpu_blocks {num_blocks}: must not be negative")
        self.num_blocks = num_blocks
        self.used = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return self.num_blocks - self.used

    def take(self, n: int, *, touched: int) -> None:
        """Take *n* blocks if *touched* are free. Raises `CapacityError`: the real engine stops there."""
        if touched > self.num_free:
            raise CapacityError(
                f"swap space is full: {touched} blocks wanted, {self.num_free} of {self.num_blocks} free;"
                " raise num_cpu_blocks (--swap-space)"
            )
        self.used += n

    def give(self, n: int) -> None:
        """Return *n* blocks."""
        self.used -= n
