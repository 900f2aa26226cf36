"""A link that carries KV from one replica to another.

A transfer lasts latency + bytes / bandwidth, if it is alone. Transfers that overlap contend: ``fair`` gives each
the same part of the bandwidth at every moment (processor sharing, what concurrent flows of equal rights get);
``fifo`` sends one after the other. The latency of one overlaps with the bytes of the next.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator
from typing import Any

import simpy

__all__ = ["Link"]


class Link:
    """*bandwidth* in B/s, *latency* in s, *sharing* ``fair`` or ``fifo``."""

    def __init__(
        self, env: simpy.Environment, bandwidth: float, latency: float, sharing: str = "fair"
    ) -> None:
        self.env, self.bandwidth, self.latency = env, bandwidth, latency
        self._turn = simpy.Resource(env) if sharing == "fifo" else None
        self._flows: list[tuple[float, int, simpy.Event]] = []
        self._served = 0.0  # bytes that a flow which was there from the start would have got
        self._as_of = 0.0
        self._number = self._timer = 0

    def send(self, size: float) -> Generator[simpy.Event, Any, None]:
        """Returns when *size* bytes have arrived. An interrupt takes the rest off the link."""
        if self._turn is None:
            done = self._join(size)
            try:
                yield done
            except simpy.Interrupt:
                self._drop(done)
                raise
        else:
            with self._turn.request() as turn:
                yield turn
                yield self.env.timeout(size / self.bandwidth)
        yield self.env.timeout(self.latency)

    def _join(self, size: float) -> simpy.Event:
        self._count()
        self._number += 1
        done = self.env.event()
        heapq.heappush(self._flows, (self._served + size, self._number, done))
        self._set_timer()
        return done

    def _drop(self, done: simpy.Event) -> None:
        self._count()
        self._flows = [flow for flow in self._flows if flow[2] is not done]
        heapq.heapify(self._flows)
        self._set_timer()

    def _count(self) -> None:
        """Bytes served to each flow up to now."""
        if self._flows:
            self._served += (self.env.now - self._as_of) * self.bandwidth / len(self._flows)
        self._as_of = self.env.now

    def _set_timer(self) -> None:
        """Wake up when the next flow is complete, unless something changes before."""
        self._timer += 1
        if not self._flows:
            return
        left = max(self._flows[0][0] - self._served, 0.0)
        timeout = self.env.timeout(left * len(self._flows) / self.bandwidth, self._timer)
        timeout.callbacks.append(self._on_timer)

    def _on_timer(self, event: simpy.Event) -> None:
        if event.value != self._timer:
            return
        self._count()
        due = max(self._served, self._flows[0][0])  # rounding must not leave it a fraction of a byte short
        self._served = due
        while self._flows and self._flows[0][0] <= due * (1 + math.ulp(1.0)):
            heapq.heappop(self._flows)[2].succeed()
        self._set_timer()
