"""Output tokens are dearer than input tokens.

Providers charge 3 to 5 times as much for an output token (GPT-4o 5 and 15, Claude 3.5 Sonnet 3 and 15 dollars a
million, August 2024), and a user waits for it as long as for 115 to 248 input tokens (regressions over calls to the
two; both in "Understanding Input/Output tokens vs Latency Tradeoff", minusx.ai, 2024-08-31).

A prompt is computed at once and is limited by the multiplier; an output token is a pass over all weights, shared by
whoever decodes beside it. So there are two ratios: of waiting, for one request alone, and of GPU time, on a server that
never runs dry. Both are marginal: what one token more costs.
"""

from __future__ import annotations

import numpy as np

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Workloads
from simulator.claims.runs import Case, at_once, requests_per_minute, served
from simulator.workload import Trace

__all__ = ["CLAIMS"]

CASES = (
    Case("Llama-3.1-8B, 1 H100", "llama-3.1-8b", "h100-sxm-80gb"),
    Case("Llama-3.1-70B, 4 H100", "llama-3.1-70b", "h100-sxm-80gb", 4),
    Case("Llama-3.1-405B FP8, 8 H100", "llama-3.1-405b", "h100-sxm-80gb", 8),
)
INPUT, OUTPUT = 2000, 300
"""Tokens around which one more is counted; about those of a chat with context."""
MORE = 200
NUM_REQUESTS = 400


def run(workloads: Workloads) -> Outcome:
    """Ratio of the marginal costs of an output and an input token: time waited, GPU time."""
    rows: list[tuple[str, ...]] = [
        ("one token more", "wait, input", "wait, output", "GPU time, input", "GPU time, output")
    ]
    waits, costs = [], []
    for case in CASES:
        dtype = {"dtype": "fp8"} if "FP8" in case.label else {}
        wait = _marginal(lambda i, o, c=case, d=dtype: _latency(c, d, i, o))
        cost = _marginal(lambda i, o, c=case, d=dtype: _gpu_seconds(c, d, i, o))
        waits.append(wait[1] / wait[0])
        costs.append(cost[1] / cost[0])
        rows.append((case.label, *(_micro(value) for value in (*wait, *cost))))
    ours = {PRICE: Range.of(*costs), WAIT: Range.of(*waits)}
    return Outcome(ours, tuple(rows), (), f"around {INPUT} in and {OUTPUT} out, {MORE} tokens more")


def _marginal(seconds) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """s per further input token and per further output token."""
    base = seconds(INPUT, OUTPUT)
    return (seconds(INPUT + MORE, OUTPUT) - base) / MORE, (seconds(INPUT, OUTPUT + MORE) - base) / MORE


def _latency(case: Case, dtype: dict[str, str], tokens: int, output: int) -> float:
    """End-to-end seconds of a request that is alone."""
    trace = Trace.from_columns(np.zeros(1), np.array([tokens]), np.array([output]))
    return float(served(trace, **case.deployment, **dtype).records.finish_time[0])


def _gpu_seconds(case: Case, dtype: dict[str, str], tokens: int, output: int) -> float:
    """GPU-seconds of a request among many."""
    lengths = np.full(NUM_REQUESTS, tokens), np.full(NUM_REQUESTS, output)
    return (
        60.0
        * case.tensor_parallel_size
        / requests_per_minute(served(at_once(*lengths), **case.deployment, **dtype))
    )


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs"


PRICE, WAIT = "price; GPU time", "time waited"
CLAIMS = (
    Claim(
        id="token-cost",
        title="An output token costs more than an input token",
        source="prices and regressions of minusx.ai, 2024-08-31 (GPT-4o, Claude 3.5 Sonnet)",
        setup="vLLM on H100: one request alone, and a server that never runs dry; one token more of either kind",
        unknown="models, hardware and load behind the prices; margins; how providers split prefill and decode",
        why="prices follow costs loosely; the GPU-time ratio grows with the context an output token attends to and "
        "falls with the batch it shares its weights with",
        published=(Published(PRICE, 3, 5), Published(WAIT, 115, 248)),
        run=run,
    ),
)
