"""Which drafted tokens the target accepts, drawn so that scheduling cannot change it.

The token at position p of an answer is either easy for the draft or it is not. So every position of every request has
one uniform number u(p), and a step that starts at position p accepts the leading run of its drafts for which
u(p + j) < a(j), where a(j) is the probability that draft j is right given that those before it were. The position
after the run takes the target's own token and is never drafted again: each number is used once, draws are independent
for one rate, and two systems, batch sizes or orders of arrival see the same easy and hard tokens.

With one rate α the number of tokens of a step is (1 − α^(k+1)) / (1 − α) in the mean (Leviathan, Kalman and Matias
2023, arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

__all__ = ["NOT_DRAFTED", "Drafting", "tokens_per_step"]

NOT_DRAFTED = -1
"""In place of a number of accepted drafts: the step had no draft to check."""


@dataclass(frozen=True)
class Drafting:
    """Speculation as a policy sees it.

    *rates*: probability that the draft at each depth is accepted, given that those before it were. *width*: tokens
    that a sequence computes in a step, its last token and every draft (more than the depth for a tree). *match*:
    share of the steps in which there is anything to check. *lookahead*: tokens behind the checked ones whose KV slots
    the draft writes. *drops_last_hit*: the last block found in the prefix cache is computed again, because the draft
    needs hidden states that no cache keeps.
    """

    rates: tuple[float, ...]
    width: int
    match: float = 1.0
    lookahead: int = 0
    drops_last_hit: bool = False
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Depth of a draft, tokens."""
        return len(self.rates)

    @property
    def mean_width(self) -> float:
        """Mean tokens that a sequence computes in a step."""
        return 1 + self.match * (self.width - 1)

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a step yields per sequence."""
        return tokens_per_step(self.rates, self.match)

    def accepted(self, index: int, name: str, position: int, left: int) -> list[int]:
        """Accepted drafts of each step of request *index* from output *position* on, for *left* more tokens.

        *name* tells the samples of one request apart. The last step may accept beyond the end.
        """
        rates, depth = self.rates, len(self.rates)
        rng = np.random.Generator(np.random.PCG64([self.seed, index, crc32(name.encode())]))
        uniforms = rng.random((2, position + left + depth))[:, position:]
        easy, drafted = uniforms[0].tolist(), (uniforms[1] < self.match).tolist()
        found, at = [], 0
        while at < left:
            if not drafted[at]:
                found.append(NOT_DRAFTED)
                at += 1
                continue
            run = 0
            while run < depth and easy[at + run] < rates[run]:
                run += 1
            found.append(run)
            at += run + 1
        return found


def tokens_per_step(rates: Sequence[float], match: float = 1.0) -> float:
    """1 + match · Σ of the probabilities that the first j drafts are all accepted; for one rate the closed form."""
    total, chain = 0.0, 1.0
    for rate in rates:
        chain *= rate
        total += chain
    return 1.0 + match * total
