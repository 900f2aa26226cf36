"""What goes wrong: replicas that die, that are slow, that cannot be reached.

Deaths happen at stated times or after exponential lives of mean ``mtbf``. A machine that died is replaced after
``repair`` seconds and the pool's start-up time, or never. A cut separates the router from a replica: it gets no
new requests, what it has goes on and its answers get out.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Literal

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.cluster.fleet import Fleet
from simulator.cluster.pool import Member, State
from simulator.errors import ConfigurationError

__all__ = ["FailureSpec", "Fault", "install_failures"]


class Fault(BaseModel):
    """Something that happens to one replica *at* a time (s)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["death", "slow", "cut"]
    pool: str
    replica: int = Field(default=0, ge=0)
    """Its number within the pool, from 0, in the order of their starts."""
    at: float = Field(ge=0)
    duration: float | None = Field(default=None, gt=0)
    """s that a slow replica is slow or a cut lasts; None: for good."""
    factor: float = Field(default=2.0, gt=0)
    """Step times of a slow replica are so many times as long."""

    @model_validator(mode="after")
    def _fits(self) -> Fault:
        if self.kind == "death" and self.duration is not None:
            raise ValueError(f"duration {self.duration:g}: a death has none, `repair` brings a new replica")
        return self


class FailureSpec(BaseModel):
    """What fails when, and what becomes of the requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: tuple[Fault, ...] = ()
    mtbf: float | None = Field(default=None, gt=0)
    """Mean s that a replica lives."""
    repair: float | None = Field(default=None, ge=0)
    """s until a new machine is there; None: never."""
    on_death: Literal["retry", "lose"] = "retry"
    max_retries: int = Field(default=3, ge=0)
    """How often a request may start again."""


Active = dict[Member, list[Fault]]
"""What is wrong with each replica at the moment."""


def install_failures(fleet: Fleet, spec: FailureSpec, *, may_grow: bool = True) -> None:
    """Let what *spec* says happen to *fleet*. Raises `ConfigurationError` for what is not there.

    *may_grow*: replicas may come beside those that are there at first (autoscaling, repair, a change of sides).
    """
    pools = {pool.name: pool for pool in fleet.pools}
    active: Active = {}
    for fault in spec.events:
        if fault.pool not in pools:
            raise ConfigurationError(f"failures: pool {fault.pool!r}: must be one of {', '.join(pools)}")
        number = pools[fault.pool].replicas
        if fault.replica >= number and not may_grow:
            raise ConfigurationError(
                f"failures: pool {fault.pool}: replica {fault.replica}: must be below {number}, the number of replicas"
            )
        fleet.env.process(_happen(fleet, fault, spec, active))
    if spec.mtbf is not None:
        rng = np.random.default_rng([fleet.seed, 1])
        fleet.on_open(lambda member: fleet.env.process(_live(fleet, member, spec, rng)))


def _happen(
    fleet: Fleet, fault: Fault, spec: FailureSpec, active: Active
) -> Generator[simpy.Event, None, None]:
    yield fleet.env.timeout(fault.at)
    member = _find(fleet, fault)
    if member is None or member.state in (State.STOPPED, State.DEAD):
        return
    if fault.kind == "death":
        fleet.kill(member, repair=spec.repair)
        return
    if member.state is State.STARTING:
        return  # it has no requests, and nobody to hide from
    _set(fleet, member, [*active.get(member, ()), fault], active)
    if fault.duration is not None:
        yield fleet.env.timeout(fault.duration)
        if member.state in (State.READY, State.DRAINING):
            _set(fleet, member, [other for other in active[member] if other is not fault], active)


def _find(fleet: Fleet, fault: Fault) -> Member | None:
    for member in fleet.members:
        if member.pool.name == fault.pool and member.rank == fault.replica:
            return member
    return None


def _set(fleet: Fleet, member: Member, faults: list[Fault], active: Active) -> None:
    """*member* has these *faults* from now on: slow ones multiply, one cut is enough."""
    active[member] = faults
    cuts = [fault for fault in faults if fault.kind == "cut"]
    slow = math.prod(fault.factor for fault in faults if fault.kind == "slow")
    if slow != member.paced.slow:
        member.set_slow(slow)
    if cuts or not member.reachable:
        fleet.reach(member, not cuts, for_good=any(cut.duration is None for cut in cuts))


def _live(
    fleet: Fleet, member: Member, spec: FailureSpec, rng: np.random.Generator
) -> Generator[simpy.Event, None, None]:
    assert spec.mtbf is not None
    yield fleet.env.timeout(float(rng.exponential(spec.mtbf)))
    if not fleet.over:
        fleet.kill(member, repair=spec.repair)
