"""Into how many splits a decode attention launch cuts the contexts.

Too few leave multiprocessors idle, in the last wave above all; too many pay for starting blocks and for
merging. The cost of a launch, in tokens that one thread block reads, is the number of waves times the
tokens of a split, with a constant for each block and each merged part; the least is taken. The arithmetic
of Flash-Decoding's heuristic.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["MIN_CHUNK", "choose_splits"]

MIN_CHUNK = 256  # tokens: a shorter split spends more on its start and merge than it reads
MAX_SPLITS = 128
START = 96  # tokens' worth of time to start a block, fill its pipeline and write its result
MERGE = 4  # tokens' worth of time to merge one more part


@lru_cache(maxsize=4096)
def choose_splits(batch: int, kv_heads: int, max_context: int, slots: int) -> int:
    """Splits for *batch* sequences of up to *max_context* tokens, where *slots* thread blocks run at a
    time."""
    most = max(1, min(MAX_SPLITS, max_context // MIN_CHUNK))
    return min(range(1, most + 1), key=lambda n: (_cost(n, batch * kv_heads, max_context, slots), n))


def _cost(splits: int, rows: int, context: int, slots: int) -> float:
    waves = -(-rows * splits // slots)
    return waves * (-(-context // splits) + START) + (MERGE * splits if splits > 1 else 0)
