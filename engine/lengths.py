"""Prompt and output lengths like those of ShareGPT, for measuring without the data set.

The means are those of the vLLM paper (Kwon et al. 2023, fig. 11: 161 input and 338 output tokens);
log-normal with the usual long tail, cut to what that paper's benchmark keeps (4 to 1,024 prompt tokens,
2,048 in all).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["sharegpt_like"]

MEAN_INPUT, MEAN_OUTPUT = 161.31, 337.99
SPREAD = 1.0  # standard deviation of the logarithm
MAX_PROMPT, MAX_TOTAL = 1024, 2048


def sharegpt_like(count: int, seed: int = 0) -> NDArray[np.int64]:
    """``[count, 2]``: prompt and output tokens of each request."""
    rng = np.random.default_rng(seed)
    found = np.empty((0, 2), dtype=np.int64)
    while len(found) < count:
        means = np.array([MEAN_INPUT, MEAN_OUTPUT])
        # E[exp(N(m, s²))] = exp(m + s²/2); the cut takes some of the tail away again.
        drawn = (
            np.exp(rng.normal(np.log(means * 1.1) - SPREAD**2 / 2, SPREAD, (count, 2)))
            .round()
            .astype(np.int64)
        )
        kept = (drawn.min(axis=1) >= 4) & (drawn[:, 0] <= MAX_PROMPT) & (drawn.sum(axis=1) <= MAX_TOTAL)
        found = np.concatenate((found, drawn[kept]))
    return found[:count]
