"""The replicas that there are: how they come, share GPUs, change sides and go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import simpy

from simulator.cluster.pool import Inbox, Member, Paced, Pool, SharingReplica, State
from simulator.replica import Replica
from simulator.results import RecordsBuilder
from simulator.workload import Trace

__all__ = ["Roster"]


class Roster(ABC):
    """Members of pools over their lives. What their coming and going means for requests a subclass says."""

    def __init__(self, env: simpy.Environment, trace: Trace, *, stepped: bool) -> None:
        self.env, self.trace, self.stepped = env, trace, stepped
        self.records = RecordsBuilder(len(trace))
        self.members: list[Member] = []
        self._outputs: list[int] = trace.output_length.tolist()
        self._watchers: list[Callable[[Member], object]] = []

    @abstractmethod
    def on_left(self, member: Member, index: int, now: float) -> None:
        """Request *index* is done at *member*."""

    @abstractmethod
    def on_change(self) -> None:
        """Members came or went, or can or cannot be reached."""

    @abstractmethod
    def busy(self, member: Member) -> bool:
        """Whether *member* still has something to do."""

    def of(self, pool: Pool, *states: State) -> list[Member]:
        """Members of *pool* in one of *states*."""
        return [m for m in self.members if m.pool is pool and m.state in states]

    def on_open(self, tell: Callable[[Member], object]) -> None:
        """Call *tell* for every replica that serves, now or later."""
        self._watchers.append(tell)
        for member in [m for m in self.members if m.state is State.READY]:
            tell(member)

    # coming

    def start(
        self, pool: Pool, *, after: float = 0.0, startup: float | None = None, ready: bool = False
    ) -> Member:
        """A new replica of *pool*; its machine is there *after* seconds, and it serves *startup* seconds later."""
        rank = sum(1 for m in self.members if m.pool is pool)
        member = Member(len(self.members), rank, pool, self.env.now + after)
        self.members.append(member)
        if ready:
            self._open(member)
        else:
            self.env.process(self._come_up(member, after + (pool.startup if startup is None else startup)))
        self.on_change()
        return member

    def _come_up(self, member: Member, delay: float) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(delay)
        if member.state is State.STARTING:
            self._open(member)
            self.on_change()

    def _open(self, member: Member) -> None:
        pool = member.pool
        inbox = Inbox(lambda index, now: self.on_left(member, index, now))
        paced = Paced(pool.steptime, pool.slowdown)
        kind = SharingReplica if pool.gpus else Replica
        replica = kind(
            self.env,
            pool.make_scheduler(),
            paced,  # type: ignore[arg-type]
            inbox,
            self._outputs,
            self.records,
            index=member.index,
            stepped=self.stepped,
            open=True,
        )
        member.open(replica, inbox, paced, self.env.now)
        for tell in self._watchers:
            tell(member)
        if isinstance(replica, SharingReplica):
            replica.on_work = lambda working: self._share(member, working)

    def _share(self, member: Member, working: bool) -> None:
        """*member* has work or none: its neighbours on the same GPUs get less or more of their time."""
        member.working = working
        serving = [m for m in self.members if m.state in (State.READY, State.DRAINING)]
        gpus = (member.pool.gpus, member.rank)
        group = [m for m in serving if m.working and (m.pool.gpus, m.rank) == gpus]
        for neighbour in group:
            neighbour.paced.sharing = len(group)
            if neighbour is not member:
                neighbour.replica.deliver()

    # going

    def drain(self, member: Member) -> None:
        """*member* gets nothing more and stops when it is done."""
        if member.state is State.STARTING:
            self._stop(member)
        elif member.state is State.READY:
            member.state = State.DRAINING
            self.stop_if_idle(member)
        self.on_change()

    def convert(self, member: Member, pool: Pool, switch: float) -> None:
        """When *member* has finished what it has, its machine serves in *pool*, *switch* seconds later."""
        member.successor = pool, switch
        self.drain(member)

    def stop_if_idle(self, member: Member) -> None:
        """A draining *member* goes when it has nothing to do."""
        if member.state is State.DRAINING and not self.busy(member):
            self._stop(member)

    def _stop(self, member: Member) -> None:
        member.state, member.stop_time = State.STOPPED, max(self.env.now, member.start_time)
        if member.successor is not None:
            pool, switch = member.successor
            self.start(pool, startup=switch)

    def bury(self, member: Member, repair: float | None) -> None:
        """*member* dies on the spot. *repair*: s until a new machine is there; None: never."""
        served = member.state is not State.STARTING
        member.state, member.stop_time = State.DEAD, max(self.env.now, member.start_time)
        if served:
            member.replica.die()
            if member.pool.gpus:
                self._share(member, False)
        if repair is not None:
            self.start(member.pool, after=repair)

    def reach(self, member: Member, reachable: bool, *, for_good: bool = False) -> None:
        """The network between router and *member* is cut or whole. What is there goes on, and answers get out."""
        member.reachable = reachable
        member.cut_off = for_good and not reachable
        self.on_change()
