"""The order in which TensorRT-LLM's capacity pass looks at the active requests, and what it lets through."""

from __future__ import annotations

from simulator.scheduling.request import RUNNING, Request

__all__ = ["Fitting", "Line", "place"]


def place(request: Request) -> int:
    """Where *request* stands among the active ones."""
    return request.order


class Fitting:
    """What the capacity pass lets through; *decodes* None: all generating requests."""

    __slots__ = ("contexts", "decodes", "ordered", "paused", "skipped")

    def __init__(self) -> None:
        self.decodes: list[Request] | None = None
        self.contexts: list[Request] = []
        self.ordered: list[Request] | None = None
        """Both in the order in which tokens are handed out; None: the generating ones first."""
        self.paused: list[Request] = []
        self.skipped = False


class Line:
    """The active requests in order, of which the last started ones can be cut off with all behind them."""

    __slots__ = ("_at", "_contexts", "_started", "_waiting")

    def __init__(self, started: list[Request], contexts: list[Request]) -> None:
        self._started = sorted(started, key=place)
        self._at = 0
        self._contexts = iter(contexts)
        self._waiting = self._next_waiting()

    def _next_waiting(self) -> Request | None:
        return next((request for request in self._contexts if request.status is not RUNNING), None)

    def current(self) -> Request | None:
        """The request whose turn it is."""
        if self._at < len(self._started):
            request = self._started[self._at]
            if self._waiting is None or request.order < self._waiting.order:
                return request
        return self._waiting

    def move(self) -> None:
        """Go on to the next request."""
        if self.current() is self._waiting:
            self._waiting = self._next_waiting()
        else:
            self._at += 1

    def cut(self) -> Request | None:
        """The last started request, from the current one on; it and all behind it get no turn."""
        if self._at == len(self._started):
            return None
        victim = self._started.pop()
        if self._waiting is not None and self._waiting.order > victim.order:
            self._waiting = None
        self._contexts = (request for request in self._contexts if request.order < victim.order)
        return victim
