"""Tokens to content ids: the names under which a prefix cache finds them.

A scheduler's prefix cache does not look at tokens; it compares runs of ``(content id, number of tokens)``.
Here a run is one full block, and its id is a hash of the block's tokens and of the id before it: two
sequences have the same id at a block exactly when they agree in all tokens up to its end (63 bits of
BLAKE2b; a collision among a million blocks has probability 5e-8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

__all__ = ["extend_content"]


def extend_content(
    content: list[tuple[int, int]], tokens: Sequence[int], block_size: int, adapter: str | None = None
) -> None:
    """Append to *content* the runs of all full blocks of *tokens* that it does not name yet."""
    for start in range(len(content) * block_size, len(tokens) - block_size + 1, block_size):
        before = content[-1][0].to_bytes(8, "little") if content else (adapter or "").encode()
        block = np.asarray(tokens[start : start + block_size], dtype=np.int64).tobytes()
        digest = hashlib.blake2b(block, digest_size=8, key=before).digest()
        content.append((int.from_bytes(digest, "little") >> 1, block_size))
