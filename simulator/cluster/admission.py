"""Who is let in: limits at the door of a cluster.

A server that accepts everything under overload answers nothing in time. Three ways to shed load: a limit on the
requests that are in the system or wait in it, a token bucket (``rate`` requests per second, bursts of up to
``burst``; for all together or for each tenant), and a limit on the time spent waiting at the router.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Admission", "AdmissionSpec"]


class Crowd(Protocol):
    """Who is in the system already."""

    @property
    def num_inside(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...


class AdmissionSpec(BaseModel):
    """Limits; None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_outstanding: int | None = Field(default=None, ge=1)
    """Requests in the system."""
    max_queue: int | None = Field(default=None, ge=1)
    """Requests that wait, at the router or in a replica; one more is turned away."""
    max_queue_by_class: dict[str, Annotated[int, Field(ge=1)]] = {}
    """The same for requests of an SLO class: what can wait is shed before what cannot."""
    max_wait: float | None = Field(default=None, gt=0)
    """s in the router's queue."""
    rate: float | None = Field(default=None, gt=0)
    """Requests per second."""
    burst: float = Field(default=1.0, ge=1)
    per_tenant: bool = False
    """Whether every tenant has a bucket of its own."""


class Admission:
    """`AdmissionSpec` at work."""

    def __init__(self, spec: AdmissionSpec) -> None:
        self.spec = spec
        self._buckets: dict[str | None, tuple[float, float]] = {}

    def refuse(self, crowd: Crowd, tenant: str | None, slo_class: str | None, now: float) -> str | None:
        """Why a request of *tenant* and *slo_class* is turned away at *now*; None: it is let in."""
        spec = self.spec
        if spec.max_outstanding is not None and crowd.num_inside >= spec.max_outstanding:
            return f"overload: {spec.max_outstanding} requests in the system (max_outstanding)"
        if spec.max_queue is not None and crowd.num_waiting >= spec.max_queue:
            return f"overload: {spec.max_queue} requests wait (max_queue)"
        limit = spec.max_queue_by_class.get(slo_class or "")
        if limit is not None and crowd.num_waiting >= limit:
            return f"overload: {limit} requests wait (max_queue_by_class {slo_class})"
        if spec.rate is not None and not self._take(tenant if spec.per_tenant else None, now):
            return f"rate limit: {spec.rate:g} requests/s, bursts of {spec.burst:g}"
        return None

    def _take(self, bucket: str | None, now: float) -> bool:
        """One token from *bucket*, which fills at ``rate``."""
        spec = self.spec
        assert spec.rate is not None
        tokens, then = self._buckets.get(bucket, (spec.burst, now))
        tokens = min(tokens + (now - then) * spec.rate, spec.burst)
        # a bucket that filled from one token's use to the next must hold it, whatever the rounding
        allowed = tokens >= 1 - 1e-9
        self._buckets[bucket] = (tokens - 1 if allowed else tokens, now)
        return allowed
