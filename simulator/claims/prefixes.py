"""Prefix caching on Mooncake's conversations.

Qin et al., FAST 2025 (Mooncake), table 2: 40 % of the prompt tokens of its conversation trace can be found in a cache
that forgets nothing. A real cache forgets: what is found then, and what it saves, depends on its size.
"""

from __future__ import annotations

from typing import Any

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Workloads
from simulator.deployment import Deployment
from simulator.simulation import Result, simulate

__all__ = ["CLAIMS", "hit_rate"]

FORGETS_NOTHING = 10_000_000
"""Blocks of 16 tokens, more than the trace has."""
DEPLOYMENT = {"model": "llama-3.1-8b", "gpu": "h200-sxm-141gb", "tensor_parallel_size": 4}


def hit_rate(result: Result) -> float:
    """Prompt tokens found in the cache over all prompt tokens of requests that were scheduled."""
    records = result.records
    scheduled = records.first_scheduled_time == records.first_scheduled_time
    return float(records.cached_tokens[scheduled].sum() / records.input_length[scheduled].sum())


def run(workloads: Workloads) -> Outcome:
    """Hit rate without a limit, then what the GPUs' own cache finds and saves."""
    trace, lengths = workloads.mooncake()
    rows: list[tuple[str, ...]] = [("cache", "tokens found", "mean TTFT", "mean TPOT", "requests/s")]
    found = 0.0
    for label, options in (
        ("none", {"enable_prefix_caching": False}),
        ("four H200's own", {"enable_prefix_caching": True}),
        ("forgets nothing", {"enable_prefix_caching": True, "num_gpu_blocks": FORGETS_NOTHING}),
    ):
        result = _serve(trace, options)
        found = hit_rate(result)
        rows.append((label, f"{100 * found:.1f} %", *_figures(result)))
    return Outcome({REUSE: Range.of(100 * found)}, tuple(rows), (), lengths)


def _serve(trace: Any, options: dict[str, Any]) -> Result:
    return simulate(trace, Deployment.of(**DEPLOYMENT, **options))


def _figures(result: Result) -> tuple[str, ...]:
    summary = result.summary
    return (
        f"{(summary['mean_ttft_ms'] or 0) / 1e3:.2f} s",
        f"{summary['mean_tpot_ms'] or 0:.1f} ms",
        f"{summary['request_throughput'] or 0:.2f}",
    )


REUSE = "prompt tokens found"
CLAIMS = (
    Claim(
        id="prefix-caching",
        title="Prompt tokens that a prefix cache finds, Mooncake's conversations",
        source="Mooncake, FAST 2025, table 2",
        setup="Llama-3.1-8B on 4 H200, vLLM with blocks of 16, an hour of requests; a cache that forgets nothing",
        unknown="whether the paper counts the last, partial block; the trace here is a sample of what it measured",
        why="without the trace the sessions are drawn, and what they repeat follows from how long they are",
        published=(Published(REUSE, 40, 40, "%"),),
        run=run,
    ),
)
