"""Requests entering the system: the trace turned into arrivals, one at a time.

An open loop sends every request at its time, whatever became of the others. In a closed loop the past
decides: at most ``max_concurrency`` requests are in flight, and a later turn of a session is sent ``delay``
seconds after the turn before it has completed.

Between client and scheduler there is a front end (HTTP, tokenisation): a request reaches the scheduler ``front_end``
seconds after it was sent. The times here are the scheduler's.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.compiled.attributes import mypyc_attr
from simulator.scheduling.request import Request
from simulator.workload import OUTPUT_ID_BASE, Trace

__all__ = ["ClosedLoop", "OpenLoop", "arrivals"]

CHUNK = 1 << 15
"""Rows turned into Python objects at a time, so that a million of them never exist together."""


@mypyc_attr(allow_interpreted_subclasses=True)
class OpenLoop:
    """Arrivals of the requests *indices* (all of them by default) of *trace*, in order.

    *max_tokens*: the limit stated for each request, int64[n]. ``next_time`` is when the next one arrives, infinite
    when none is left. *front_end*: seconds from sending to arrival.
    """

    def __init__(
        self,
        trace: Trace,
        max_tokens: NDArray[np.int64],
        indices: NDArray[np.int64] | None = None,
        front_end: float = 0.0,
    ) -> None:
        self.trace = trace
        self.front_end = front_end
        self.max_tokens = max_tokens
        self.indices = np.arange(len(trace)) if indices is None else indices
        self._start = 0
        self._rows: list[tuple[float, int, int, int, int, int]] = []
        self._has_content = len(trace.content_ids) > 0
        self._names = trace.request_id
        adapters: list[str | None] | None = [*iter(trace.lora)] if len(trace.lora.names) else None
        self._adapters = adapters
        self._named = _named_outputs(trace)
        self._load()

    def _load(self) -> None:
        """The next rows, last first, so that taking one is a pop."""
        chosen = self.indices[self._start : self._start + CHUNK]
        self._start += len(chosen)
        trace = self.trace
        columns = (
            trace.arrival_time[chosen] + self.front_end,
            chosen,
            trace.input_length[chosen],
            self.max_tokens[chosen],
            trace.priority[chosen],
            trace.n[chosen],
        )
        self._rows = list(zip(*(column[::-1].tolist() for column in columns), strict=True))
        self.next_time = self._rows[-1][0] if self._rows else math.inf

    def pop(self) -> Request:
        """The next request, at its arrival time."""
        arrival, index, prompt, limit, priority, n = self._rows.pop()
        if self._rows:
            self.next_time = self._rows[-1][0]
        else:
            self._load()
        return self.request(index, prompt, limit, arrival, priority, n)

    def request(self, index: int, prompt: int, limit: int, arrival: float, priority: int, n: int) -> Request:
        """The scheduler's view of request *index*."""
        request = Request(
            f"r{index}" if self._names is None else self._names[index],
            prompt,
            limit,
            arrival_time=arrival,
            index=index,
        )
        if priority:
            request.priority = priority
        if n != 1:
            request.n = n
        if self._has_content:
            trace = self.trace
            a, b = trace.content_offsets[index : index + 2].tolist()
            if b > a:
                request.content = tuple(
                    zip(trace.content_ids[a:b].tolist(), trace.content_tokens[a:b].tolist(), strict=True)
                )
        if self._named is not None and index in self._named:
            request.output_id = OUTPUT_ID_BASE + index
        if self._adapters is not None:
            request.adapter = self._adapters[index]
        return request

    def completed(self, index: int, now: float) -> None:
        """Request *index* has left the system. An open loop does not care."""


class ClosedLoop(OpenLoop):
    """Arrivals that wait: for a place among ``trace.max_concurrency`` in flight, for the turn before."""

    def __init__(
        self,
        trace: Trace,
        max_tokens: NDArray[np.int64],
        indices: NDArray[np.int64] | None = None,
        front_end: float = 0.0,
    ) -> None:
        super().__init__(trace, max_tokens, indices, front_end)
        previous = trace.previous_turn()
        waits = np.isnan(trace.arrival_time)
        follows = np.flatnonzero(waits & (previous >= 0))
        self._next_turn = dict(zip(previous[follows].tolist(), follows.tolist(), strict=True))
        sent = trace.arrival_time.tolist()
        self._due = [(t + front_end, i) for i, t in enumerate(sent) if not math.isnan(t)]
        self._free = trace.max_concurrency or len(trace)
        self._limited = trace.max_concurrency is not None and front_end > 0.0
        self._returning: list[float] = []
        """When the next request can be here in a place that is free: the client hears of the end, and sends."""
        self._now = 0.0
        self._set_next()

    def _load(self) -> None:
        """Rows are taken one by one."""

    def _set_next(self) -> None:
        if not self._free:
            self.next_time = math.inf
        elif self._due:
            due = self._due[0][0]
            if not self._limited:
                self.next_time = max(due, self._now)
            elif len(self._returning) == self._free:
                self.next_time = max(due, self._returning[0])
            else:
                self.next_time = due
        else:
            self.next_time = math.inf

    def pop(self) -> Request:
        arrival, index = self.next_time, heapq.heappop(self._due)[1]
        if len(self._returning) == self._free:
            heapq.heappop(self._returning)
        self._free -= 1
        self._set_next()
        trace = self.trace
        return self.request(
            index,
            int(trace.input_length[index]),
            int(self.max_tokens[index]),
            arrival,
            int(trace.priority[index]),
            int(trace.n[index]),
        )

    def completed(self, index: int, now: float) -> None:
        """A place is free, and the session's next turn is due after its delay."""
        self._free += 1
        self._now = now
        if self._limited:
            heapq.heappush(self._returning, now + self.front_end)
        turn = self._next_turn.get(index)
        if turn is not None:
            heapq.heappush(self._due, (now + float(self.trace.delay[turn]) + self.front_end, turn))
        self._set_next()


def arrivals(
    trace: Trace,
    max_tokens: NDArray[np.int64],
    indices: NDArray[np.int64] | None = None,
    front_end: float = 0.0,
) -> OpenLoop:
    """The injector that *trace* needs."""
    closed = trace.max_concurrency is not None or bool(np.isnan(trace.arrival_time).any())
    kind = ClosedLoop if closed else OpenLoop
    return kind(trace, max_tokens, indices, front_end)


def _named_outputs(trace: Trace) -> frozenset[int] | None:
    """Requests whose output a later prompt names."""
    ids = trace.content_ids
    if not len(ids) or int(ids.max()) < OUTPUT_ID_BASE:
        return None
    named: Sequence[int] = (ids[ids >= OUTPUT_ID_BASE] - OUTPUT_ID_BASE).tolist()
    return frozenset(named)
