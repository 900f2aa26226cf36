"""Processes beside the server that simulate for its pages.

A page's script runs in a thread of the server, and one thread computes at a time there: ten readers who simulate in it
would stop each other's pages. So what takes long is a `Job` of one of two lanes. Short jobs have as many processes as
the machine has cores; long ones have one, at the lowest priority, so that a run of a hundred thousand requests makes
nobody wait who moves a slider. A job says how far it is and can be ended: both go through memory that is shared.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunningError
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any, Generic, TypeVar

from simulator.errors import ConfigurationError

__all__ = ["Job", "StoppedError", "start", "start_all", "stop_all"]

Value = TypeVar("Value")
Tick = Callable[[float], None]

MOST_JOBS = 200
"""Jobs that run or wait, in each lane."""
MOST_PROCESSES = 8
NICE = 10


class StoppedError(Exception):
    """The job was ended before it was done."""


class _Lane:
    """A pool of processes and the memory it shares with the server."""

    def __init__(self, processes: int, nice: int) -> None:
        self.processes, self.nice = processes, nice
        self.done = multiprocessing.RawArray("d", MOST_JOBS)
        self.stop = multiprocessing.RawArray("b", MOST_JOBS)
        self._free = list(range(MOST_JOBS))
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[int, Future[bytes]]:
        """The job's place in the shared memory and its future."""
        with self._lock:
            if not self._free:
                raise ConfigurationError(f"{MOST_JOBS} simulations wait on this server: try again later")
            place = self._free.pop()
            self.done[place], self.stop[place] = 0.0, 0
            future = self._submit(place, function, args)
        future.add_done_callback(lambda _: self._free.append(place))
        return place, future

    def _submit(self, *job: Any) -> Future[bytes]:
        for _ in range(2):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self.processes,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_begin,
                    initargs=(self.done, self.stop, self.nice),
                )
            try:
                return self._pool.submit(_work, *job)
            except BrokenProcessPool:  # a process was killed, most likely for memory: begin afresh
                self._pool = None
        raise ConfigurationError("the processes that simulate cannot be started")


@cache
def _lanes() -> tuple[_Lane, _Lane]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _Lane(min(max(cores, 2), MOST_PROCESSES), 0), _Lane(1, NICE)


class Job(Generic[Value]):
    """Work under way in another process."""

    def __init__(self, lane: _Lane, function: Callable[..., Value], args: tuple[Any, ...]) -> None:
        self._lane = lane
        self._place, self._future = lane.submit(function, args)
        self.num_bytes = 0
        """Size of the answer, once it is there."""

    @property
    def fraction(self) -> float:
        """How much of it is done."""
        return min(float(self._lane.done[self._place]), 1.0)

    def wait(self, seconds: float) -> bool:
        """Whether it is done, after at most *seconds*."""
        try:
            self._future.exception(seconds)
        except StillRunningError:
            return False
        except CancelledError:
            pass
        return True

    def result(self) -> Value:
        """The answer. Raises what the work raised, `StoppedError`, or `ConfigurationError` where its process died."""
        try:
            content = self._future.result()
        except CancelledError:
            raise StoppedError from None
        except BrokenProcessPool:
            raise ConfigurationError("the simulation's process was killed: is there enough memory?") from None
        self.num_bytes = len(content)
        value: Value = pickle.loads(content)
        return value

    def end(self) -> None:
        """Take it off the queue, or stop it where it next says how far it is."""
        if not self._future.cancel() and not self._future.done():
            self._lane.stop[self._place] = 1


def start(function: Callable[..., Value], *args: Any, long: bool) -> Job[Value]:
    """Begin ``function(*args, tick)`` elsewhere. Raises `ConfigurationError` while too many wait."""
    return Job(_lanes()[long], function, args)


def start_all(module: str) -> None:
    """Have the processes of the short lane ready, with *module* imported, before anybody asks."""
    lane = _lanes()[0]
    for _ in range(lane.processes):
        lane.submit(_ready, (module,))


def stop_all() -> None:
    """End every job, so that the server can leave."""
    if _lanes.cache_info().currsize:
        for lane in _lanes():
            lane.stop[:] = [1] * MOST_JOBS


_shared: tuple[Any, Any] | None = None


def _begin(done: Any, stop: Any, nice: int) -> None:
    """In the new process: share the memory, step back, and leave when the server does, even if it is killed."""
    global _shared
    _shared = done, stop
    if hasattr(os, "nice"):
        os.nice(nice)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(place: int, function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    assert _shared is not None
    done, stop = _shared

    def tick(fraction: float) -> None:
        done[place] = fraction
        if stop[place]:
            raise StoppedError

    tick(0.0)
    return pickle.dumps(function(*args, tick), pickle.HIGHEST_PROTOCOL)


def _ready(module: str, tick: Tick) -> None:
    importlib.import_module(module)
