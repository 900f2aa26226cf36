"""Into how many splits a decode attention launch cuts the contexts.

Too few leave multiprocessors idle, in the last wave above all; too many pay for starting blocks and for merging. The
cost of a launch, in tokens that one thread block reads, is the number of waves times the tokens of a split, with a
constant for each block and each merged part (the arithmetic of Flash-Decoding's heuristic). Lengths differ in a real
batch and the launch knows their bound only: of the choices that cost about the same, the one with the most
splits is taken, because a sequence much longer than the others then holds nobody up.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["MIN_CHUNK", "choose_splits"]

MIN_CHUNK = 256  # tokens: a shorter split spends more on its start and merge than it reads
MAX_SPLITS = 128
START = 96  # tokens' worth of time to start a block, fill its pipeline and write its result
ABOUT_THE_SAME = 1.04
MERGE = 4  # tokens' worth of time to merge one more part


@lru_cache(maxsize=4096)
def choose_splits(batch: int, kv_heads: int, max_context: int, slots: int) -> int:
    """Splits for *batch* sequences of up to *max_context* tokens, where *slots* thread blocks run at a
    time."""
    most = max(1, min(MAX_SPLITS, max_context // MIN_CHUNK))
    costs = [_cost(n, batch * kv_heads, max_context, slots) for n in range(1, most + 1)]
    allowed = min(costs) * ABOUT_THE_SAME
    return max(n for n, cost in enumerate(costs, start=1) if cost <= allowed)


def _cost(splits: int, rows: int, context: int, slots: int) -> float:
    waves = -(-rows * splits // slots)
    return waves * (-(-context // splits) + START) + (MERGE * splits if splits > 1 else 0)
