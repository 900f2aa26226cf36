"""Where simulations run: here, or in local processes that are replaced when they die. The results do not depend on it.

A process may be killed from outside (out of memory, a user, a scheduler of jobs). `concurrent.futures` then fails
everything that was given out; here new processes take the place of the old and the work is given out again. Work that
takes down process after process is an error.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from simulator.errors import CapacityError, ConfigurationError

__all__ = ["ATTEMPTS", "DurableExecutor", "SerialExecutor", "local_executor"]

ATTEMPTS = 3
"""Times that the processes may die, with nothing finished in between, before the work is to blame."""


class SerialExecutor(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """*fn*'s future, already done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Job(NamedTuple):
    """A call, and the future that was promised for it."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    promised: Future[Any]


class DurableExecutor(Executor):
    """*workers* processes; those that die are replaced and their work is done again."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lock = threading.RLock()
        self._losses = 0
        self._closed = False
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        # A fork would copy the threads' locks of numpy and pyarrow as they happen to be.
        return ProcessPoolExecutor(self._workers, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future of *fn*; a `CapacityError` where the processes die over and over."""
        job = Job(fn, args, kwargs, Future())
        self._give_out(job)
        return job.promised

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes go."""
        with self._lock:
            self._closed = True
            pool = self._pool
        pool.shutdown(wait, cancel_futures=cancel_futures)

    def _give_out(self, job: Job) -> None:
        while True:
            with self._lock:
                pool = self._pool
            try:
                future = pool.submit(job.fn, *job.args, **job.kwargs)
            except BrokenExecutor as error:
                if not self._replace(pool):
                    self._blame(job, error)
                    return
                continue
            future.add_done_callback(partial(self._came_back, job, pool))
            return

    def _came_back(self, job: Job, pool: ProcessPoolExecutor, done: Future[Any]) -> None:
        if done.cancelled():
            job.promised.cancel()
            return
        error = done.exception()
        if isinstance(error, BrokenExecutor):
            if self._replace(pool):
                self._give_out(job)
            else:
                self._blame(job, error)
            return
        with self._lock:
            self._losses = 0
        if job.promised.set_running_or_notify_cancel():
            job.promised.set_exception(error) if error else job.promised.set_result(done.result())

    def _replace(self, broken: ProcessPoolExecutor) -> bool:
        """New processes for *broken*, once; False where that was tried too often."""
        with self._lock:
            if self._closed or self._losses > ATTEMPTS:
                return False
            if self._pool is broken:
                self._losses += 1
                if self._losses > ATTEMPTS:
                    return False
                self._pool = self._new_pool()
                broken.shutdown(wait=False)
            return True

    def _blame(self, job: Job, error: BaseException) -> None:
        if job.promised.set_running_or_notify_cancel():
            times = f"the workers died {self._losses} times without finishing a run"
            job.promised.set_exception(CapacityError(f"{times} ({type(error).__name__})"))


@contextmanager
def local_executor(workers: int) -> Iterator[Executor]:
    """*workers* processes, or this one for a single worker. What has not begun is dropped when the block is left."""
    if workers < 1:
        raise ConfigurationError(f"workers {workers}: must be at least 1")
    if workers == 1:
        yield SerialExecutor()
        return
    pool = DurableExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
