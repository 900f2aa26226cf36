"""Where simulations run: here, or in local processes. The results do not depend on it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from simulator.errors import ConfigurationError

__all__ = ["SerialExecutor", "local_executor"]


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


@contextmanager
def local_executor(workers: int) -> Iterator[Executor]:
    """*workers* processes, or this one for a single worker."""
    if workers < 1:
        raise ConfigurationError(f"workers {workers}: must be at least 1")
    if workers == 1:
        yield SerialExecutor()
        return
    # A fork would copy the threads' locks of numpy and pyarrow as they happen to be.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
