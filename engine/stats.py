"""What an executor says about itself at a moment; needs nothing, so that a simulated executor can say it
too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True)
class Stats:
    """Queues and blocks now; preemptions and prefix cache counts (tokens) are since the start. A block holds
    *block_size* tokens.
    """

    num_running: int
    num_waiting: int
    blocks_used: int
    num_blocks: int
    block_size: int
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int
