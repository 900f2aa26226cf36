"""Which replica gets a request.

A router sees what a real one sees: how many requests it sent somewhere and has not seen come back, what
replicas report of their KV cache, what it remembers of the prompts it sent. With *staleness* s it looks at the
replicas only every so often; in between it decides on the old picture (Mitzenmacher, How Useful Is Old
Information?, 2000). The picture is taken with the first request after a multiple of *staleness*.

Two choices: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001. Prefix-aware with an
approximate record of what was sent where: SGLang's router. Weights: nginx's smooth weighted round robin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from simulator.cluster.pool import Member
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.scheduling import Request
from simulator.workload import Trace

__all__ = ["ROUTERS", "STATIC", "Router", "make_router"]

STATIC = ("random", "round-robin")
"""Routers that do not look at the replicas."""


class Router(ABC):
    """Base of every router; *trace* is where it looks up sessions and SLO classes."""

    def __init__(self, trace: Trace, seed: int = 0, staleness: float = 0.0, imbalance: int = 32) -> None:
        if not 0 <= staleness < math.inf:
            raise ConfigurationError(f"staleness {staleness}: must be at least 0 and finite")
        if imbalance < 0:
            raise ConfigurationError(f"imbalance {imbalance}: must be at least 0")
        self.trace = trace
        self.rng = np.random.default_rng(seed)
        self.staleness = staleness
        self.imbalance = imbalance
        self._seen: dict[Member, float] = {}
        self._period = -1.0

    @abstractmethod
    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member | None:
        """One of *members* (at least one), or None: the request waits at the router until something changes."""

    def sent(self, request: Request, member: Member, now: float) -> None:
        """*request* went to *member*."""
        return

    def forget(self, member: Member) -> None:
        """*member* is gone."""
        self._seen.pop(member, None)

    def load(self, member: Member) -> float:
        """What the router compares."""
        return len(member.outstanding)

    def loads(self, members: Sequence[Member], now: float) -> list[float]:
        """`load` of each, as of the latest look at them."""
        if not self.staleness:
            return [self.load(member) for member in members]
        if (period := now // self.staleness) != self._period:
            self._period = period
            self._seen = {member: self.load(member) for member in members}
        return [self._seen.get(member, 0.0) for member in members]

    def least(self, members: Sequence[Member], now: float) -> Member:
        """The least loaded, the first of equals."""
        loads = self.loads(members, now)
        return members[loads.index(min(loads))]


class RoundRobin(Router):
    """Each in turn."""

    _next = 0

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        member = members[self._next % len(members)]
        self._next += 1
        return member


class Random(Router):
    """Any, with equal probability."""

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        return members[int(self.rng.integers(len(members)))]


class LeastOutstanding(Router):
    """The one with the fewest requests that have not come back."""

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        return self.least(members, now)


class LeastKv(LeastOutstanding):
    """The one whose KV cache is least used, and among equals the one with the fewest requests."""

    def load(self, member: Member) -> float:
        return member.kv_usage + 1e-9 * len(member.outstanding)


class PowerOfTwo(Router):
    """The less loaded of two drawn at random."""

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        if len(members) == 1:
            return members[0]
        first, second = int(self.rng.integers(len(members))), int(self.rng.integers(len(members) - 1))
        second += second >= first  # any but the first
        return self.least((members[first], members[second]), now)

    def loads(self, members: Sequence[Member], now: float) -> list[float]:
        if not self.staleness:
            return super().loads(members, now)
        if (period := now // self.staleness) != self._period:
            self._period, self._seen = period, {}
        # a replica is asked when it is drawn for the first time in a period
        return [self._seen.setdefault(member, self.load(member)) for member in members]


class SessionAffinity(Router):
    """The replica that served the session before; a new session, or one whose replica is gone, the least loaded."""

    def __init__(self, trace: Trace, seed: int = 0, staleness: float = 0.0, imbalance: int = 32) -> None:
        super().__init__(trace, seed, staleness, imbalance)
        self._home: dict[int, Member] = {}

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        session = int(self.trace.session[request.index])
        home = self._home.get(session)
        if session >= 0 and home is not None and home in members:
            return home
        member = self.least(members, now)
        if session >= 0:
            self._home[session] = member
        return member


class PrefixAware(Router):
    """The replica that was sent the longest leading part of the prompt before, unless loads are too uneven.

    The router remembers what it sent, per replica, up to as many tokens as the replica's KV cache holds, least
    recently used first out. What was sent since the latest multiple of *staleness* is not in the record yet.
    Where the loads differ by more than *imbalance* requests, the least loaded gets the request.
    """

    def __init__(self, trace: Trace, seed: int = 0, staleness: float = 0.0, imbalance: int = 32) -> None:
        super().__init__(trace, seed, staleness, imbalance)
        self._known: dict[Member, OrderedDict[int, int]] = {}
        self._held: dict[Member, int] = {}
        self._news: list[tuple[Member, list[tuple[int, int]]]] = []
        self._learnt = -1.0

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member:
        self._learn(now)
        loads = self.loads(members, now)
        if max(loads) - min(loads) > self.imbalance:
            return members[loads.index(min(loads))]
        path = _path(request)
        matched = [self._matched(member, path) for member in members]
        best = max(matched)
        _, chosen = min((load, i) for i, load in enumerate(loads) if matched[i] == best)
        return members[chosen]

    def sent(self, request: Request, member: Member, now: float) -> None:
        self._news.append((member, _path(request)))

    def forget(self, member: Member) -> None:
        super().forget(member)
        self._known.pop(member, None)
        self._held.pop(member, None)

    def _matched(self, member: Member, path: list[tuple[int, int]]) -> int:
        known: Mapping[int, int] = self._known.get(member, {})
        total = 0
        for key, tokens in path:
            if key not in known:
                break
            total += tokens
        return total

    def _learn(self, now: float) -> None:
        """Take the news into the record, if it is time."""
        if self.staleness and (period := now // self.staleness) == self._learnt:
            return
        if self.staleness:
            self._learnt = period
        for member, path in self._news:
            known, held = self._known.setdefault(member, OrderedDict()), self._held.get(member, 0)
            for key, tokens in path:
                held += 0 if key in known else tokens
                known[key] = tokens
                known.move_to_end(key)
            series = member.replica.series
            while held > series.num_gpu_blocks * series.block_size:
                held -= known.popitem(last=False)[1]
            self._held[member] = held
        self._news.clear()


class Weighted(Router):
    """Each as often as its pool's weight for the request's SLO class says, spread evenly; where none of those that are
    left has any weight, all count the same.
    """

    def __init__(self, trace: Trace, seed: int = 0, staleness: float = 0.0, imbalance: int = 32) -> None:
        super().__init__(trace, seed, staleness, imbalance)
        self._credit: dict[tuple[str | None, Member], float] = {}
        self._classes: list[str | None] = list(iter(trace.slo_class))

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member | None:
        name, credit = self._classes[request.index], self._credit
        weights = [member.pool.weights.get(name or "", member.pool.weight) for member in members]
        if not any(weights):
            weights = [1.0] * len(members)
        total = sum(weights)
        for member, weight in zip(members, weights, strict=True):
            credit[name, member] = credit.get((name, member), 0.0) + weight
        usable = [member for member, weight in zip(members, weights, strict=True) if weight > 0]
        best = max(usable, key=lambda member: credit[name, member])
        credit[name, best] -= total
        return best


class CentralQueue(Router):
    """One queue for all: a request waits at the router until a replica has a free place (M/M/c)."""

    def choose(self, request: Request, members: Sequence[Member], now: float) -> Member | None:
        free = [member for member in members if len(member.outstanding) < member.slots]
        return min(free, key=lambda member: len(member.outstanding) / member.slots) if free else None


ROUTERS: dict[str, type[Router]] = {
    "central-queue": CentralQueue,
    "least-kv": LeastKv,
    "least-outstanding": LeastOutstanding,
    "power-of-two": PowerOfTwo,
    "prefix-aware": PrefixAware,
    "random": Random,
    "round-robin": RoundRobin,
    "session-affinity": SessionAffinity,
    "weighted": Weighted,
}


def make_router(
    name: str, trace: Trace, *, seed: int = 0, staleness: float = 0.0, imbalance: int = 32
) -> Router:
    """The router called *name*. Raises `UnknownNameError`."""
    if name not in ROUTERS:
        raise UnknownNameError("router", name, ROUTERS)
    return ROUTERS[name](trace, seed, staleness, imbalance)


def _path(request: Request) -> list[tuple[int, int]]:
    """The prompt's named runs as a chain: a number for all content up to the end of each, and its tokens."""
    path, chain = [], 0
    for content_id, tokens in request.content:
        chain = hash((chain, content_id, tokens))
        path.append((chain, tokens))
    return path
