"""A search for the cheapest deployment, beside the page: it says how far it is and can be stopped.

It runs in a thread of its own whose simulations are processes of their own, so that neither the page nor other readers
wait for it. At most `MOST` searches run at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from app import library
from simulator.errors import ConfigurationError, SimError
from simulator.sizing import local_executor

__all__ = ["Job", "start"]

WORKERS = 2
MOST = 2
_free = threading.Semaphore(MOST)


class Job:
    """One search: what it has said so far, and in the end what it found or why not."""

    def __init__(self, answer: Callable[[Executor, Callable[[str], None]], dict[str, Any]]) -> None:
        self.said: list[str] = []
        self.found: dict[str, Any] | None = None
        self.problem: str | None = None
        self.stopped = False
        self._answer = answer
        self._pool: Executor | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether there is still something to wait for."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the search; what runs is finished, what waits is not begun."""
        self.stopped = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        try:
            with local_executor(WORKERS) as self._pool:
                self.found = self._answer(self._pool, self._say)
        except SimError as error:
            self.problem = library.error_text(error)
        except (CancelledError, BrokenProcessPool, RuntimeError) as error:
            if not self.stopped:  # a pool that was shut down refuses work: that is what stopping looks like
                self.problem = f"the search broke off: {error or type(error).__name__}"
        finally:
            _free.release()

    def _say(self, text: str) -> None:
        if self.stopped:
            raise CancelledError
        self.said.append(text)


def start(answer: Callable[[Executor, Callable[[str], None]], dict[str, Any]]) -> Job:
    """Begin to work out *answer* (`Question.prepare`). Raises `ConfigurationError` while too many others run."""
    if not _free.acquire(blocking=False):
        raise ConfigurationError(f"{MOST} searches are running on this server: wait for one of them")
    return Job(answer)
