"""Replicas behind a router that looks at them: pools that grow, shrink, fail and hand requests to each other.

A request arrives, is let in or turned away, and waits at the router until a replica is chosen for it. A prefill
pool computes the prompt and the first token, which the client gets; the KV then travels over a link and the
request goes to a decode pool. KV that arrives waits outside the decode replica's memory until the request is
admitted there. When a replica dies, its requests, and those whose KV it was sending, start again elsewhere or are
lost; what the client had been sent of a request that starts again does not count.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import simpy

from simulator.cluster.admission import Admission, AdmissionSpec
from simulator.cluster.handover import Handover, LinkSpec
from simulator.cluster.pool import Member, Pool, State
from simulator.cluster.roster import Roster
from simulator.cluster.routers import Router, make_router
from simulator.injection import arrivals
from simulator.results import FINISHED, IN_TRANSFER, LOST, REJECTED, WAITING
from simulator.scheduling import Request
from simulator.workload import Trace

__all__ = ["Fleet", "Lane"]

STAGES = {"serve": ("serve", "prefill"), "decode": ("decode",)}
"""Roles of the pools that a request may go to, on its way in and when its KV has travelled."""


class Lane:
    """Pools that some requests may go to, the router in front of them, and those that wait there."""

    def __init__(self, pools: Sequence[Pool], router: Router) -> None:
        self.pools, self.router = pools, router
        self.queue: deque[Request] = deque()
        self.members: list[Member] = []
        """Those that can be sent requests now."""
        self.hope = True
        """Whether one of them is there or will be."""


class Fleet(Roster):
    """The replicas of *pools* and what they do with *trace*.

    *max_tokens*: the limit stated for each request, int64[n]. *link* carries KV from prefill to decode
    replicas. *max_retries*: how often a request may start again.
    """

    def __init__(
        self,
        env: simpy.Environment,
        trace: Trace,
        max_tokens: np.ndarray[Any, np.dtype[np.int64]],
        pools: Sequence[Pool],
        *,
        router: str = "round-robin",
        staleness: float = 0.0,
        imbalance: int = 32,
        admission: AdmissionSpec | None = None,
        link: LinkSpec | None = None,
        max_retries: int = 3,
        seed: int = 0,
        stepped: bool = False,
        front_end: float = 0.0,
    ) -> None:
        super().__init__(env, trace, stepped=stepped)
        self.max_tokens, self.pools, self.max_retries, self.seed = max_tokens, list(pools), max_retries, seed
        self.retries = [0] * len(trace)
        self.injected = self.num_left = 0
        self.finished = env.event()
        """Triggered when the last request has left."""
        self.departures: list[tuple[float, int]] = []
        """When each request left, and which."""
        self.handover = Handover(env, link, self._arrived) if link is not None else None
        self._models: list[str | None] = list(iter(trace.model))
        self._tenants: list[str | None] = list(iter(trace.tenant))
        self._classes: list[str | None] = list(iter(trace.slo_class))
        self._source = arrivals(trace, max_tokens, front_end=front_end)
        self._admission = Admission(admission) if admission is not None else None
        self._make_router = partial(make_router, router, trace, staleness=staleness, imbalance=imbalance)
        self._lanes: dict[tuple[Pool, ...], Lane] = {}
        codes = range(-1, len(trace.model.names))  # -1: no model is named
        self._ways = {(stage, code): self._lane(stage, code) for stage in STAGES for code in codes}
        for pool in self.pools:
            for _ in range(pool.replicas):
                self.start(pool, ready=True)
        self._sleeping = False
        self._injector = env.process(self._inject())

    # what routers, admission and autoscalers ask

    @property
    def over(self) -> bool:
        """Whether every request has left."""
        return self.num_left == len(self.trace)

    @property
    def num_inside(self) -> int:
        """Requests that arrived and have not left."""
        return self.injected - self.num_left

    @property
    def num_waiting(self) -> int:
        """Requests that wait, at the router or in a replica."""
        waiting = sum(len(lane.queue) for lane in self._lanes.values())
        return waiting + sum(m.num_waiting for m in self.members if m.state in (State.READY, State.DRAINING))

    def queued(self, pool: Pool) -> int:
        """Requests that wait at the router for *pool* (among others)."""
        return sum(len(lane.queue) for lane in self._lanes.values() if pool in lane.pools)

    # arrivals

    def _inject(self) -> Generator[simpy.Event, Any, None]:
        source, env = self._source, self.env
        while True:
            while source.next_time <= env.now:
                self._arrive(source.pop())
            self._sleeping = True
            with contextlib.suppress(simpy.Interrupt):
                yield env.event() if source.next_time == math.inf else env.timeout(source.next_time - env.now)
            self._sleeping = False

    def _arrive(self, request: Request) -> None:
        i, records = request.index, self.records
        records.arrival_time[i] = request.arrival_time
        records.input_length[i] = request.prompt_length
        lane = self._way("serve", i)
        if not lane.pools:
            name = self._models[i]
            unnamed = "the request names no model, and the pools hold several"
            reason: str | None = unnamed if name is None else f"no pool serves model {name}"
        else:
            reason = self._refuse(i) if self._admission is not None else None
        self.injected += 1
        records.status[i] = WAITING
        if reason is not None:
            self._leave(i, REJECTED, reason)
        else:
            self._send(request, lane)

    def _refuse(self, index: int) -> str | None:
        assert self._admission is not None
        return self._admission.refuse(self, self._tenants[index], self._classes[index], self.env.now)

    def _lane(self, stage: str, code: int) -> Lane:
        """Where requests for the model *code* go: all that may go to the same pools share one queue and router."""
        name = None if code < 0 else self.trace.model.names[code]
        pools = tuple(
            p for p in self.pools if p.role in STAGES[stage] and (p.serves is None or name in p.serves)
        )
        if pools not in self._lanes:
            self._lanes[pools] = Lane(pools, self._make_router(seed=self.seed + len(self._lanes)))
        return self._lanes[pools]

    def _way(self, stage: str, index: int) -> Lane:
        return self._ways[stage, int(self.trace.model.codes[index])]

    def _send(self, request: Request, lane: Lane) -> None:
        """To a replica, or to the end of the router's queue."""
        if not lane.hope:
            self._leave(request.index, LOST, "no replica is left to serve it")
        elif lane.queue or not self._route(request, lane):
            lane.queue.append(request)
            limit = self._admission.spec.max_wait if self._admission else None
            if limit is not None:
                self.env.process(self._give_up(request, lane, limit))

    def _route(self, request: Request, lane: Lane) -> bool:
        if not lane.members:
            return False
        member = lane.router.choose(request, lane.members, self.env.now)
        if member is None:
            return False
        member.take(request)
        lane.router.sent(request, member, self.env.now)
        return True

    def _give_up(self, request: Request, lane: Lane, limit: float) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(limit)
        if request in lane.queue:
            lane.queue.remove(request)
            self._leave(request.index, REJECTED, f"waited more than {limit:g} s at the router (max_wait)")

    def _drain(self) -> None:
        """Something changed: those that wait at the router may go."""
        for lane in self._lanes.values():
            while lane.queue and self._route(lane.queue[0], lane):
                lane.queue.popleft()

    # departures

    def on_left(self, member: Member, index: int, now: float) -> None:
        request = member.outstanding.pop(index)
        wanted = min(self._outputs[index], int(self.max_tokens[index]))
        if member.pool.role == "prefill" and self.records.status[index] == FINISHED and wanted > 1:
            self._hand_over(request, member)
        else:
            self._count_out(index)
        self.stop_if_idle(member)
        self._drain()

    def _leave(self, index: int, status: int, reason: str) -> None:
        self.records.leave(index, status, reason, self.env.now)
        self._count_out(index)

    def _count_out(self, index: int) -> None:
        self.num_left += 1
        self.departures.append((self.env.now, index))
        before = self._source.next_time
        self._source.completed(index, self.env.now)
        if self._source.next_time < before and self._sleeping:
            self._sleeping = False
            self._injector.interrupt()
        if self.over:
            self.finished.succeed()

    # from prefill to decode

    def _hand_over(self, request: Request, member: Member) -> None:
        i, records = request.index, self.records
        records.status[i] = IN_TRANSFER
        records.finish_time[i] = math.nan
        records.output_length[i] = 0  # the decode replica counts the whole answer
        assert self.handover is not None
        request.sends_kv = True
        self.handover.send(request, member)

    def _arrived(self, request: Request, member: Member) -> None:
        """The KV of *request* is where the decode pools can take it, and *member* has room again."""
        if member.replica.scheduler.keeps_kv:
            member.replica.scheduler.release(request)
            member.replica.deliver()
        self.records.status[request.index] = WAITING
        ready = self._again(request)
        ready.ready, ready.generated, ready.target = request.prompt_length, 1, request.prompt_length + 1
        self._send(ready, self._way("decode", request.index))
        self.stop_if_idle(member)

    def busy(self, member: Member) -> bool:
        return bool(member.outstanding) or (self.handover is not None and self.handover.is_sending(member))

    def _again(self, request: Request) -> Request:
        """The request as it came from the client."""
        i = request.index
        limit = int(self.max_tokens[i])
        return self._source.request(
            i, request.prompt_length, limit, request.arrival_time, request.priority, int(self.trace.n[i])
        )

    def kill(self, member: Member, repair: float | None = None) -> None:
        """*member* dies: its requests start again elsewhere, or are lost. *repair*: s until a new machine is there."""
        if member.state in (State.STOPPED, State.DEAD):
            return
        held = list(member.outstanding.values())
        member.outstanding.clear()
        if self.handover is not None:
            held += self.handover.give_up(member)
        for lane in self._lanes.values():
            lane.router.forget(member)
        self.bury(member, repair)
        self.on_change()
        for request in held:
            self._retry_or_lose(request, member)

    def _retry_or_lose(self, request: Request, member: Member) -> None:
        i, records = request.index, self.records
        if self.retries[i] >= self.max_retries:
            times = f" after {self.retries[i]} retries" if self.retries[i] else ""
            self._leave(i, LOST, f"replica {member.name} died{times}")
            return
        self.retries[i] += 1
        records.status[i] = WAITING
        records.output_length[i] = records.cached_tokens[i] = 0
        records.first_scheduled_time[i] = records.first_token_time[i] = records.finish_time[i] = math.nan
        self._send(self._again(request), self._way("serve", i))

    def on_change(self) -> None:
        for lane in self._lanes.values():
            self._look_at(lane)
        self._drain()

    def _look_at(self, lane: Lane) -> None:
        mine = [m for m in self.members if m.pool in lane.pools]
        lane.members = [m for m in mine if m.state is State.READY and m.reachable]
        alive = any(m.state in (State.READY, State.STARTING) and not m.cut_off for m in mine)
        lane.hope = alive or any(pool.autoscaled for pool in lane.pools)
        while lane.queue and not lane.hope:
            self._leave(lane.queue.popleft().index, LOST, "no replica is left to serve it")
