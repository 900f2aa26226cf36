"""Where the time of a run went: by operator family, and by what requests waited for.

A run keeps its decisions, not the operators inside them. Steps are therefore evaluated again, operator by
operator, at a sample of the decisions, weighted by how long each lasted; the context of a decoding batch is
taken from the KV blocks in use. The sum is scaled to the time the run really spent in iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from simulator.deployment import Resolved
from simulator.results import FINISHED, Records, StepSeries
from simulator.results.series import busy_points
from simulator.workload import Trace

__all__ = ["FAMILIES", "request_parts", "time_breakdown"]

FAMILIES = {
    "gemm": "matrix products",
    "moe": "experts",
    "decode_attention": "attention, decode",
    "prefill_attention": "attention, prefill",
    "all_reduce": "communication",
    "collective": "communication",
    "elementwise": "element-wise kernels",
    "sampling": "sampling",
    "lora": "LoRA adapters",
    "kv_write": "KV write",
    "drafting": "drafting",
    "layer_overhead": "gaps between kernels",
    "host": "host",
}
"""Operator families as a reader calls them."""

KV_FULL = 0.8
"""KV usage from which a queue is put down to memory: the next prompt may need all the rest."""


class Simulated(Protocol):
    """What a finished simulation, of one deployment or of a cluster, tells about itself."""

    @property
    def trace(self) -> Trace: ...

    @property
    def deployed(self) -> Sequence[tuple[StepSeries, Resolved]]:
        """What each replica did, with what was deployed on it."""


class Recorded(Protocol):
    """One that keeps every request's times."""

    @property
    def records(self) -> Records: ...

    @property
    def series(self) -> Sequence[StepSeries]: ...


def time_breakdown(result: Simulated, samples: int = 300) -> dict[str, float]:
    """Seconds in iterations by `FAMILIES` name, all replicas together; empty for a run without iterations."""
    total: dict[str, float] = {}
    length = float((result.trace.input_length + result.trace.output_length / 2).mean())
    for series, resolved in result.deployed:
        points = busy_points(series)
        count = len(points["time"])
        parts: dict[str, float] = {}
        for i in np.linspace(0, count - 1, min(samples, count)).astype(int).tolist():
            for name, seconds in _step(resolved, length, points, i).items():
                parts[name] = parts.get(name, 0.0) + seconds
        scale = float(points["duration_s"].sum()) / (sum(parts.values()) or 1.0)
        for name, seconds in parts.items():
            total[name] = total.get(name, 0.0) + seconds * scale
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _step(resolved: Resolved, length: float, points: dict[str, np.ndarray], i: int) -> dict[str, float]:
    """Seconds of the iterations of point *i*, by family; *length*: a mean context, tokens."""
    mixed = points["prefill_iterations"][i]
    decodes = max(round(points["num_decodes"][i]), 0)
    prefill = round(points["prefill_tokens"][i] / mixed) if mixed else 0
    held = points["kv_blocks_used"][i] * resolved.budget.block_size
    if resolved.deployment.kv_cache is False:  # nothing is held: contexts are as long as they are on average
        held = decodes * length
    named: dict[str, float] = {}
    for chunk, iterations in ((prefill, mixed), (0, points["iterations"][i] - mixed)):
        if not iterations or not (decodes or chunk):
            continue
        context = max(decodes, round(held) - chunk)
        steps = resolved.steptime.breakdown(decodes, context, [(chunk, 0)] if chunk else [])
        for family, seconds in steps.items():
            name = FAMILIES.get(family, family.replace("_", " "))
            named[name] = named.get(name, 0.0) + max(float(seconds), 0.0) * float(iterations)
    return named


def request_parts(result: Recorded) -> dict[str, float]:
    """Mean seconds of a finished request: waiting for memory, waiting for its turn, prefill, decode. They add up
    to the mean end-to-end latency.
    """
    records = result.records
    done = records.status == FINISHED
    if not done.any():
        return {}
    queue = float((records.first_scheduled_time - records.arrival_time)[done].mean())
    memory = queue * _waiting_for_memory(result)
    return {
        "waiting for KV memory": memory,
        "waiting for a turn": queue - memory,
        "prefill": float((records.first_token_time - records.first_scheduled_time)[done].mean()),
        "decode": float((records.finish_time - records.first_token_time)[done].mean()),
    }


def _waiting_for_memory(result: Recorded) -> float:
    """Share of the waiting that happened while the KV cache was full."""
    full = total = 0.0
    for series in result.series:
        points = series.points()
        waited = points["num_waiting"] * points["span"]
        total += float(waited.sum())
        full += float(waited[points["kv_blocks_used"] > KV_FULL * series.num_gpu_blocks].sum())
    return full / total if total else 0.0
