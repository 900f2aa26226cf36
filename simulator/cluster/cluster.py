"""Equal replicas behind a router, the common case.

With an open loop and a router that does not look at the replicas, each replica is given its own arrivals and
knows when the next one comes. Otherwise the replicas are a `Fleet`: each request is sent when it is due, the
router chooses from what the replicas look like at that moment, and the chosen replica is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import simpy

from simulator.cluster.fleet import Fleet
from simulator.cluster.pool import Pool
from simulator.cluster.routers import ROUTERS, STATIC
from simulator.errors import UnknownNameError
from simulator.injection import ClosedLoop, OpenLoop, arrivals
from simulator.replica import Replica
from simulator.results import RecordsBuilder
from simulator.scheduling import Scheduler
from simulator.steptime import StepTime
from simulator.workload import Trace

__all__ = ["Cluster"]


class Cluster:
    """*num_replicas* equal replicas that serve *trace*.

    *make_scheduler* is called once per replica; *max_tokens* is the limit stated for each request, int64[n];
    *front_end* seconds pass before the scheduler has it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        trace: Trace,
        max_tokens: np.ndarray[Any, np.dtype[np.int64]],
        make_scheduler: Callable[[], Scheduler],
        steptime: StepTime,
        *,
        num_replicas: int = 1,
        router: str = "round-robin",
        seed: int = 0,
        stepped: bool = False,
        horizon: float = math.inf,
        front_end: float = 0.0,
    ) -> None:
        if router not in ROUTERS:
            raise UnknownNameError("router", router, ROUTERS)
        source = arrivals(trace, max_tokens, front_end=front_end)
        alone = num_replicas == 1 and router != "central-queue"
        if not alone and (router not in STATIC or isinstance(source, ClosedLoop)):
            pool = Pool("replicas", make_scheduler, steptime, num_replicas)
            options: dict[str, Any] = {"router": router, "seed": seed, "stepped": stepped}
            fleet = Fleet(env, trace, max_tokens, [pool], front_end=front_end, **options)
            self.records = fleet.records
            self.replicas = [member.replica for member in fleet.members]
            return
        self.records = RecordsBuilder(len(trace))
        outputs = trace.output_length.tolist()
        self.replicas = [
            Replica(
                env,
                make_scheduler(),
                steptime,
                own,
                outputs,
                self.records,
                index=i,
                stepped=stepped,
                horizon=horizon,
            )
            for i, own in enumerate(
                [source]
                if num_replicas == 1
                else _split(trace, max_tokens, num_replicas, router, seed, front_end)
            )
        ]


def _split(trace: Trace, max_tokens: Any, n: int, router: str, seed: int, front_end: float) -> list[OpenLoop]:
    """The arrivals of each replica, by a router that does not look at them."""
    if router == "round-robin":
        chosen = np.arange(len(trace)) % n
    else:
        rng = np.random.default_rng(seed)
        chosen = np.fromiter((rng.integers(n) for _ in range(len(trace))), np.int64, len(trace))
    return [arrivals(trace, max_tokens, np.flatnonzero(chosen == i), front_end) for i in range(n)]
