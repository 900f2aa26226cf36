"""Why not something cheaper: all that would cost less than the plan, and the reason why it does not do."""

from __future__ import annotations

from typing import Any

from simulator.sizing.candidates import Skipped
from simulator.sizing.plan import Plan

__all__ = ["cheaper"]

COLUMNS = ("name", "replicas", "usd_per_hour", "why")


def cheaper(best: Plan, ranking: list[Plan], skipped: list[Skipped]) -> list[dict[str, Any]]:
    """A row for each number of replicas and each choice that costs less than *best*, the nearest in cost first.

    ``usd_per_hour`` is that of ``replicas`` of it: one, where it cannot run at all or misses the SLO with next to
    nothing to do.
    """
    tried = [{"name": plan.candidate.name, **vars(one)} for plan in ranking for one in plan.rejected]
    left = [{name: getattr(one, name) for name in COLUMNS} for one in skipped if one.usd_per_hour is not None]
    below = [row for row in [*tried, *left] if row["usd_per_hour"] < best.usd_per_hour]
    return sorted(below, key=lambda row: (-row["usd_per_hour"], row["name"]))
