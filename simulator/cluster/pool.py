"""What the replicas of a pool have in common, and one replica's life in it.

A member of a pool is started (a machine is found, weights are loaded, the system warms up), serves, is drained
before it is given back, or dies. It costs money from the moment its machine is there until it is gone.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import simpy

from simulator.injection import OpenLoop
from simulator.replica import Replica
from simulator.scheduling import Request, Scheduler
from simulator.steptime import StepTime

__all__ = ["Inbox", "Member", "Paced", "Pool", "State"]


@dataclass(eq=False)
class Pool:
    """Equal replicas. *role*: ``serve`` does all, ``prefill`` hands its KV to a ``decode`` pool."""

    name: str
    make_scheduler: Callable[[], Scheduler]
    steptime: StepTime
    replicas: int = 1
    role: str = "serve"
    serves: frozenset[str] | None = None
    """Values of the trace's ``model`` that it takes; None: all."""
    weight: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight by SLO class, for the router that looks at it."""
    num_gpus: int = 1
    """GPUs of one replica."""
    gpu: str = ""
    share: float = 1.0
    """Part of its GPUs that a replica occupies, for the bill."""
    usd_per_hour: float | None = None
    """Of one GPU."""
    startup: float = 0.0
    """s from the machine's being asked for to its first request."""
    kv_bytes_per_token: float = 0.0
    """Of all GPUs of a replica."""
    slowdown: float = 1.0
    """Factor on step times: a partition of a GPU is slower than the whole."""
    autoscaled: bool = False
    """Whether replicas are started when there are too few."""
    gpus: str | None = None
    """Name of GPUs that it shares with other pools in turns: replica k of each pool runs on the same ones."""


class State(enum.Enum):
    """Where a member is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"


class Paced:
    """Step times of a replica that has not its GPU's full speed: *factor* times as long."""

    def __init__(self, steptime: StepTime, factor: float = 1.0) -> None:
        self.steptime = steptime
        self.base = factor
        self.slow = 1.0
        """A fault of this replica alone."""
        self.sharing = 1
        """Replicas at work on the same GPUs."""

    @property
    def factor(self) -> float:
        """Of the step that begins now."""
        return self.base * self.slow * self.sharing

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        """One step, s."""
        return self.factor * self.steptime.seconds(num_decodes, decode_context, prefills)

    def segment(self, num_decodes: int, decode_context: int, n: int) -> Any:
        """*n* steps of a growing context, s each."""
        durations, factor = self.steptime.segment(num_decodes, decode_context, n), self.factor
        return durations if factor == 1.0 else [factor * seconds for seconds in durations]


class Inbox(OpenLoop):
    """The arrivals of an open replica: what the router has put in. They are due at once."""

    def __init__(self, completed: Callable[[int, float], None]) -> None:
        self._requests: deque[Request] = deque()
        self._completed = completed
        self.next_time = math.inf

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: Request) -> None:
        """*request* has been sent here."""
        self._requests.append(request)
        self.next_time = self._requests[0].arrival_time

    def pop(self) -> Request:
        request = self._requests.popleft()
        self.next_time = self._requests[0].arrival_time if self._requests else math.inf
        return request

    def completed(self, index: int, now: float) -> None:
        self._completed(index, now)


class SharingReplica(Replica):
    """A replica that tells when it has work and when not, so that neighbours on its GPU know."""

    on_work: Callable[[bool], None] | None = None

    def _rest(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        if self.on_work is None:
            yield from super()._rest(seconds)
            return
        self.on_work(False)
        yield from super()._rest(seconds)
        self.on_work(True)


class Member:
    """A replica with its place in the cluster. Times in s; NaN until they happen."""

    def __init__(self, index: int, rank: int, pool: Pool, start_time: float) -> None:
        self.index = index
        self.rank = rank
        """Its number within the pool."""
        self.pool = pool
        self.start_time = start_time
        self.ready_time = self.stop_time = math.nan
        self.state = State.STARTING
        self.reachable = self.working = True
        self.cut_off = False
        """Whether it can never be reached again."""
        self.outstanding: dict[int, Request] = {}
        """What was sent here and has not left, by index in the trace."""
        self.successor: tuple[Pool, float] | None = None
        """The pool that its machine goes on to serve in, and s that the change takes."""

    @property
    def name(self) -> str:
        """``pool/number``."""
        return f"{self.pool.name}/{self.rank}"

    def open(self, replica: Replica, inbox: Inbox, paced: Paced, now: float) -> None:
        """It is ready for requests."""
        self.inbox, self.paced = inbox, paced
        self.serve(replica, now)

    def serve(self, replica: Replica, now: float) -> None:
        """*replica* is what serves, from *now* on."""
        self.replica = replica
        self.state, self.ready_time = State.READY, now

    @property
    def slots(self) -> int:
        """Sequences that it runs at once at most."""
        return self.replica.scheduler.max_num_seqs

    @property
    def num_waiting(self) -> int:
        """Requests sent here that do not run."""
        return len(self.inbox) + self.replica.scheduler.num_waiting

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that requests hold at this moment."""
        self.replica.catch_up()
        scheduler = self.replica.scheduler
        return scheduler.blocks_used / scheduler.num_blocks

    def take(self, request: Request) -> None:
        """*request* is sent here."""
        self.outstanding[request.index] = request
        if self.pool.role == "prefill":
            request.max_tokens = request.n = (
                1  # the decode pool goes on after the first token, with all samples
            )
        self.inbox.put(request)
        self.replica.deliver()

    def set_slow(self, factor: float) -> None:
        """Steps that begin from now on last *factor* times as long as they should."""
        self.paced.slow = factor
        self.replica.deliver()
