"""Who holds which KV block at one moment of a run: the run repeated up to then, with blocks that have numbers.

The counting block manager of a simulation keeps no numbers. The same manager with ``track_ids`` hands them out, as the
engine's block tables need them, and decides the same, only slowly: every iteration by itself, every sequence named.
Where a system's memory is not made of numbered blocks, only what it holds and wastes is known.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from app.processes import Tick
from simulator.cluster import Cluster
from simulator.deployment import Deployment
from simulator.scheduling import Scheduler
from simulator.workload import Trace
from simulator.workload.limits import resolve_max_tokens

__all__ = ["MOST_REQUESTS", "Occupancy", "occupancy"]

MOST_REQUESTS = 3000
"""Arrivals up to the moment, at most: each of their iterations is scheduled by itself."""
TICKS = 100


@dataclass(frozen=True)
class Occupancy:
    """The KV cache of one replica at *time* (s)."""

    time: float
    num_blocks: int
    block_size: int
    """tokens"""
    used: int
    """Blocks that requests hold."""
    cached: int
    """Free blocks that stay matchable."""
    waste: Mapping[str, float]
    """Tokens by kind: reserved, internal, external; and shared, which sharing saves."""
    tables: Mapping[str, Sequence[int]] | None = None
    """Block numbers by request; None where blocks have no numbers."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Computed tokens by request."""
    cached_ids: Sequence[int] = ()

    @property
    def holders(self) -> dict[int, list[str]]:
        """Requests by the block they hold."""
        found: dict[int, list[str]] = {}
        for name, blocks in (self.tables or {}).items():
            for block in blocks:
                found.setdefault(block, []).append(name)
        return found

    def sharers(self, name: str) -> dict[str, int]:
        """With whom *name* shares blocks, and how many."""
        own, others = set((self.tables or {})[name]), (self.tables or {}).items()
        counts = Counter({other: len(own.intersection(blocks)) for other, blocks in others if other != name})
        return {other: count for other, count in counts.most_common() if count}

    def unfilled(self, name: str) -> int:
        """Token places in the blocks of *name* that hold none."""
        return max(len((self.tables or {})[name]) * self.block_size - self.tokens[name], 0)


def occupancy(trace: Trace, stated: str, time: float, replica: int, tick: Tick) -> Occupancy:
    """The KV cache of *replica* at *time* (s) of the run of *trace*; *stated*: the deployment as JSON."""
    resolved = Deployment.model_validate_json(stated).resolve()
    known = inspect.signature(resolved.system.policy_class).parameters
    numbered = "track_ids" in known and resolved.limits.get("preemption_mode") != "swap"
    policies: list[Scheduler] = []

    def make() -> Scheduler:
        policies.append(resolved.scheduler(**({"track_ids": True} if numbered else {})))
        return policies[-1]

    env = simpy.Environment()
    limits = resolve_max_tokens(trace, resolved.default_max_tokens)
    deployment = resolved.deployment
    Cluster(
        env,
        trace,
        limits,
        make,
        resolved.steptime,
        num_replicas=deployment.num_replicas,
        router=deployment.router,
        stepped=True,
        horizon=time,
    )
    for i in range(1, TICKS + 1):
        env.run(max(time * i / TICKS, 1e-9))
        tick(i / TICKS)
    return _seen(policies[replica], time, numbered)


def _seen(policy: Scheduler, time: float, numbered: bool) -> Occupancy:
    _, used, cached, *waste = policy.levels()
    kinds = dict(zip(("reserved", "internal", "external", "shared"), waste, strict=True))
    seen: dict[str, Any] = {
        "time": time,
        "num_blocks": policy.num_blocks,
        "block_size": policy.decoding.block_size,
        "used": round(used),
        "cached": round(cached),
        "waste": kinds,
    }
    if not numbered:
        return Occupancy(**seen)
    blocks: Any = policy.blocks  # type: ignore[attr-defined]
    decoding = policy.decoding
    return Occupancy(
        **seen,
        tables={request.id: list(ids) for request, ids in blocks.tables.items()},
        tokens={
            request.id: decoding.tokens(request) if request in decoding else request.computed
            for request in blocks.tables
        },
        cached_ids=blocks.cached_ids(),
    )
