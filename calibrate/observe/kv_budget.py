"""How many tokens of KV cache a server has: as it states them, or from how full it says it is.

A client knows what its own requests hold: the prompt, once it is being computed, and the tokens that have come. Divided
by the share of the cache that ``/metrics`` reports at that moment this is the size of the cache. Before its first
token a request holds an unknown part of its prompt, so moments at which that matters are left
out. A client is told late that a request has ended: a cache so found is too large by that time over a request's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.observe.observation import MetricsSample, Observation, ObservedRequest

__all__ = ["KVBudget", "kv_budget_seen"]

LEAST_USAGE = 0.02
"""Below it a share of few digits says little."""
LEAST_SAMPLES = 5
MOST_SPREAD = 0.1
"""Relative spread of the median beyond which there is no answer."""
MOST_UNKNOWN = 1.02
"""Tokens held at most over tokens held at least, for a moment to count."""
BLOCK = 16
"""vLLM's default, where the server does not state it."""


@dataclass(frozen=True)
class KVBudget:
    """*tokens* of KV cache, give or take *spread* (a share; 0 where it was stated)."""

    tokens: int
    spread: float
    source: str


def kv_budget_seen(observation: Observation) -> KVBudget | None:
    """The KV cache of the server; None where neither it nor its usage tells."""
    header = observation.header
    block = header.block_size or BLOCK
    if header.num_gpu_blocks is not None:
        return KVBudget(header.num_gpu_blocks * block, 0.0, "as the server states it")
    usable = [sample for sample in observation.samples if sample.kv_usage >= LEAST_USAGE]
    held = [_held(observation.requests, sample, block) for sample in usable]
    known = [
        (low, high, s.kv_usage)
        for (low, high), s in zip(held, usable, strict=True)
        if high <= MOST_UNKNOWN * low
    ]
    if len(known) < LEAST_SAMPLES or any(request.content for request in observation.requests):
        return None  # of shared blocks a client does not know how often they are counted
    sizes = np.array([(low + high) / 2 / usage for low, high, usage in known])
    size = float(np.median(sizes))
    spread = 1.4826 * float(np.median(np.abs(sizes - size))) / size / len(sizes) ** 0.5
    if spread > MOST_SPREAD:
        return None
    return KVBudget(round(size), spread, "from the usage that the server reports")


def _held(requests: list[ObservedRequest], sample: MetricsSample, block: int) -> tuple[float, float]:
    """Least and most tokens that requests in flight hold at the moment of *sample*, in whole blocks."""
    low = high = 0.0
    for request in requests:
        if not request.sent <= sample.time <= request.finish:
            continue
        if not request.first_token <= sample.time:
            high += _blocks(request.input_length, block)
            continue
        tokens = request.input_length + _come(request, sample.time)
        low += _blocks(tokens, block)
        high += _blocks(tokens, block)
    return low, high


def _come(request: ObservedRequest, time: float) -> float:
    """Tokens of the answer at *time*."""
    if request.token_times is not None:
        return float(np.searchsorted(request.token_times, time, side="right"))
    share = (time - request.first_token) / max(request.finish - request.first_token, 1e-9)
    return share * request.output_length


def _blocks(tokens: float, block: int) -> float:
    return float(-(-tokens // block) * block)
