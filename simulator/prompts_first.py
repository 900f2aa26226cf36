"""The steady state of a policy that runs prompts before decodes, in batches of their own (SGLang).

Time is a sequence of passes: a decode pass of D seconds, or a prefill pass of c seconds over all prompts that wait.
The pass that follows is a prefill if somebody came in the meantime, with Poisson arrivals of rate λ with probability
1 − exp(−λ t) after a pass of t seconds. In the mean over passes

    q = (1 − q)(1 − exp(−λ D)) + q (1 − exp(−λ c))      share of prefill passes
    t = (1 − q) D + q c                                 mean pass
    m = λ t / q                                         prompts of a prefill pass, c = T(m prompts)

which is a fixed point in m. A decode pass yields one token of every request, so the time between two tokens is
S = t / (1 − q). An arrival falls into a pass that is longer than the mean, waits for the rest of it, E[t²] / 2t, and is
prefilled together with those that came in the same pass. Where the next pass is decided while one still runs
(depth 2), the same equations hold between a pass and the next but one, and an arrival waits one pass more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Passes", "PromptsFirst"]

ITERATIONS = 60
FINER = 8
"""Points of the prefill's curve for every doubling of the tokens."""


@dataclass(frozen=True)
class Passes:
    """The mean pass: seconds of a *decode* and of a *prefill*, the *share* of prefills, *prompts* of one."""

    decode: float
    prefill: float
    share: float
    prompts: float

    @property
    def mean(self) -> float:
        """Seconds of a pass."""
        return (1 - self.share) * self.decode + self.share * self.prefill

    @property
    def per_token(self) -> float:
        """Seconds from one decode pass to the next."""
        return self.mean / (1 - self.share)


@dataclass(frozen=True)
class PromptsFirst:
    """Prefill passes over *prompts* (tokens, values equally likely). *seconds*: of a prefill of so many tokens, of
    which *budget* at most go into one pass; *depth* passes are in flight."""

    prompts: Sequence[float]
    budget: float
    depth: int
    seconds: Callable[[float], float]

    @cached_property
    def mean_prompt(self) -> float:
        """Tokens."""
        return sum(self.prompts) / len(self.prompts)

    @cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """(tokens, seconds) of a prefill from the shortest prompt to the budget, and of the longest prompt."""
        low, high = min(self.prompts), max(self.budget, *self.prompts)
        points = max(int(FINER * math.log2(max(high / low, 2.0))), 2)
        tokens = np.geomspace(low, high, points).tolist()
        return tokens, [self._whole(size) for size in tokens]

    def _whole(self, tokens: float) -> float:
        """In as many passes as the budget asks for."""
        passes = math.ceil(tokens / self.budget)
        return passes * self.seconds(tokens / passes)

    def prefill(self, tokens: float) -> float:
        """Seconds of a prefill of *tokens*, between the points of the curve."""
        return float(np.interp(tokens, *self._curve))

    def passes(self, request_rate: float, decode: float) -> Passes | None:
        """The mean pass at *request_rate* (1/s) with decode passes of *decode* seconds; None where prompts alone take
        all the time."""
        most = max(self.budget / self.mean_prompt, 1.0)
        after_decode, prompts = 1 - math.exp(-request_rate * decode), 1.0
        for _ in range(ITERATIONS):
            prefill = self.prefill(prompts * self.mean_prompt)
            share = after_decode / (1 + after_decode - (1 - math.exp(-request_rate * prefill)))
            found = Passes(decode, prefill, share, prompts)
            waiting = max(request_rate * found.mean / share, 1.0)
            prompts = min(0.5 * (prompts + waiting), most)
        return found if waiting <= most else self._full(request_rate, decode, most)

    def _full(self, request_rate: float, decode: float, most: float) -> Passes | None:
        """Where a prefill pass cannot take all that wait: it takes *most*, as often as that serves them."""
        prefill = self.prefill(most * self.mean_prompt)
        if request_rate * prefill >= most:
            return None
        share = request_rate * decode / (most + request_rate * (decode - prefill))  # λ t = q m
        return Passes(decode, prefill, share, most)

    def ttft(self, request_rate: float, decode: float) -> float:
        """Mean seconds to the first token of a request that does not find the replica empty."""
        found = self.passes(request_rate, decode)
        if found is None:
            return math.inf
        squared = (1 - found.share) * decode**2 + found.share * (found.prefill**2 + self._variance(found))
        together = request_rate * squared / found.mean * self.mean_prompt  # who came in the same pass, tokens
        own = sum(self.prefill(prompt + together) for prompt in self.prompts) / len(self.prompts)
        return squared / (2 * found.mean) + (self.depth - 1) * found.mean + own

    def _variance(self, found: Passes) -> float:
        """Of a prefill pass: of the lengths of its prompts, and of their number, which is Poisson's from one on."""
        size = found.prompts * self.mean_prompt
        slope = (self.prefill(2 * size) - found.prefill) / size
        lengths = float(np.var(self.prompts))
        return slope**2 * (found.prompts * lengths + (found.prompts - 1) * self.mean_prompt**2)
