"""A trace sent to a server at its arrival times, by one asynchronous client.

Later turns of a session are sent after the answer to the turn before and the trace's delay; with ``max_concurrency`` a
request also waits until fewer are in flight. What has happened is written as it happens, so a run that is interrupted,
or whose server goes away, leaves everything up to then, marked.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from calibrate.observe.journal import Journal
from calibrate.observe.observation import (
    COMPLETE,
    INTERRUPTED,
    NOT_SENT,
    Header,
    MetricsSample,
    Observation,
    ObservedRequest,
)
from calibrate.observe.prompts import sent_content
from calibrate.observe.server import Server, check_url, connect
from calibrate.observe.stream import CANNOT_CONNECT, stream_answer
from simulator.results import FINISHED, STATUS
from simulator.workload import Trace

__all__ = ["GONE", "Settings", "observe"]

GONE = "the server has gone"
PATIENCE = 10
"""Requests in a row that cannot connect, after which the server has gone."""
CONNECT_TIMEOUT = 30.0
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Settings:
    """How a trace is replayed. *timeout*: seconds of silence after which a request is given up; *interval*: seconds
    between two looks at ``/metrics``; *prompts*: ``auto``, ``tokens`` or ``text``; *warmup*: requests before the clock.
    """

    url: str
    model: str | None = None
    endpoint: str = "completions"
    prompts: str = "auto"
    api_key: str | None = None
    timeout: float = 300.0
    interval: float = 0.5
    warmup: int = 1
    seed: int = 0


def observe(
    trace: Trace,
    settings: Settings,
    out: Path,
    progress: Callable[[int], None] | None = None,
    hello: Callable[[Server], None] | None = None,
) -> Observation:
    """Replay *trace* and write *out* as it goes; SIGINT and SIGTERM end it early and are no error.

    *progress* hears how many requests have ended, *hello* of the server once it has answered.
    """
    return asyncio.run(_observe(trace, settings, out, progress, hello))


async def _observe(
    trace: Trace,
    settings: Settings,
    out: Path,
    progress: Callable[[int], None] | None,
    hello: Callable[[Server], None] | None,
) -> Observation:
    async with _session(settings) as session:
        server = await connect(
            session, check_url(settings.url), settings.model, settings.endpoint, settings.prompts
        )
        if hello is not None:
            hello(server)
        header = _header(trace, settings, server)
        with Journal(out, header) as journal:
            run = _Replay(trace, settings, server, journal, progress)
            ended = await run.run()
            journal.end(ended)
    return Observation(header, run.requests, run.samples, ended, out)


@contextlib.asynccontextmanager
async def _session(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=settings.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=True
    ) as session:
        yield session


def _header(trace: Trace, settings: Settings, server: Server) -> Header:
    return Header(
        source="sim calibrate observe",
        date=datetime.now(UTC).date().isoformat(),
        num_requests=len(trace),
        url=server.url,
        model=server.model,
        server=server.version,
        endpoint=server.dialect.describe(),
        max_concurrency=trace.max_concurrency,
        num_gpu_blocks=server.num_gpu_blocks,
        block_size=server.block_size,
        trace=str(trace.meta["path"]) if "path" in trace.meta else None,
        timeout=settings.timeout,
    )


class _Replay:
    def __init__(
        self,
        trace: Trace,
        settings: Settings,
        server: Server,
        journal: Journal,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.trace, self.settings, self.server, self.journal = trace, settings, server, journal
        self.progress = progress
        self.requests = [self._request(i) for i in range(len(trace))]
        self.samples: list[MetricsSample] = []
        self._next_turn = _next_turns(trace)
        self._slots = asyncio.Semaphore(trace.max_concurrency or len(trace))
        self._inside: set[asyncio.Task[None]] = set()
        self._noted = self._ended = self._unreachable = 0
        self._all_done = asyncio.Event()
        self._gone = asyncio.Event()
        self._start = 0.0
        self._defect: BaseException | None = None
        """Of ours, in a task: it must not be lost with the task."""

    def _request(self, i: int) -> ObservedRequest:
        trace = self.trace
        return ObservedRequest(
            id=trace.name(i),
            arrival=float(np.nan_to_num(trace.arrival_time[i])),  # of a later turn: set when it is known
            input_length=int(trace.input_length[i]),
            output_wanted=int(trace.output_length[i]),
            content=sent_content(trace, i),
        )

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() - self._start

    async def run(self) -> str:
        """Everything, to the end or to an interruption; why it ended."""
        main = asyncio.current_task()
        assert main is not None
        loop = asyncio.get_running_loop()
        interrupt = lambda: main.cancel(INTERRUPTED)  # noqa: E731
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # not the main thread
                loop.add_signal_handler(number, interrupt)
        try:
            return await self._run()
        except asyncio.CancelledError:
            main.uncancel()
            return INTERRUPTED
        finally:
            await self._stop()
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
                    loop.remove_signal_handler(number)

    async def _run(self) -> str:
        for k in range(min(self.settings.warmup, len(self.trace))):
            await self._warm_up(k)
        self._start = asyncio.get_running_loop().time()
        watching = [asyncio.create_task(self._watch())] if self.server.has_metrics else []
        sending = asyncio.create_task(self._send_all())
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self._defect is not None:
                raise self._defect
            if sending.done():
                sending.result()
            return GONE if self._gone.is_set() else COMPLETE
        finally:
            await _cancel([sending, gone, *watching])

    async def _warm_up(self, k: int) -> None:
        length = int(self.trace.input_length[k])
        dialect = self.server.dialect
        tokens = dialect.tokens([], length, k, self.settings.seed + 1)  # others than will be sent
        request = ObservedRequest("warm-up", 0.0, length, WARM_UP_TOKENS)
        wanted = min(WARM_UP_TOKENS, int(self.trace.output_length[k]))
        body = dialect.body(self.server.model, tokens, wanted)
        await stream_answer(self.server.session, self.server.endpoint, body, request, self._clock)

    async def _send_all(self) -> None:
        for i in np.flatnonzero(~np.isnan(self.trace.arrival_time)).tolist():
            body = self._body(i)  # made before it is due, so that it leaves on time
            await self._sleep_until(self.requests[i].arrival)
            self._begin(i, body)
        await self._all_done.wait()

    def _body(self, i: int) -> dict[str, Any]:
        request, dialect = self.requests[i], self.server.dialect
        tokens = dialect.tokens(request.content, request.input_length, i, self.settings.seed)
        return dialect.body(self.server.model, tokens, request.output_wanted, int(self.trace.n[i]))

    async def _sleep_until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0:
            await asyncio.sleep(left)

    def _begin(self, i: int, body: dict[str, Any]) -> None:
        task = asyncio.create_task(self._serve(i, body))
        self._inside.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._inside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = error
            self._gone.set()

    async def _serve(self, i: int, body: dict[str, Any]) -> None:
        request = self.requests[i]
        async with self._slots:
            try:
                await stream_answer(self.server.session, self.server.endpoint, body, request, self._clock)
            finally:
                if request.status != NOT_SENT:
                    self._note(request)
        follower = self._next_turn.get(i)
        if follower is None or request.status != STATUS[FINISHED]:
            self._leave(i)
        else:
            await self._follow(follower)

    async def _follow(self, i: int) -> None:
        """Turn *i* of a session whose turn before has just ended."""
        self._ended += 1
        request = self.requests[i]
        if np.isnan(self.trace.arrival_time[i]):
            request.arrival = self._clock() + float(self.trace.delay[i])
        body = self._body(i)
        await self._sleep_until(request.arrival)
        await self._serve(i, body)

    def _leave(self, i: int) -> None:
        """Request *i* has ended, and with it the later turns of its session that it should have led to."""
        self._ended += 1
        while (i := self._next_turn.get(i, -1)) >= 0:
            self._ended += 1
        if self._ended == len(self.requests):
            self._all_done.set()

    def _note(self, request: ObservedRequest) -> None:
        self.journal.request(request)
        self._noted += 1
        if self.progress is not None:
            self.progress(self._noted)
        self._unreachable = self._unreachable + 1 if request.reason == CANNOT_CONNECT else 0
        if self._unreachable >= PATIENCE:
            self._gone.set()

    async def _watch(self) -> None:
        while True:
            now = self._clock()
            sample = await self.server.sample(now)
            if sample is not None:
                self.samples.append(sample)
                self.journal.sample(sample)
            await self._sleep_until(now + self.settings.interval)

    async def _stop(self) -> None:
        await _cancel(list(self._inside))


def _next_turns(trace: Trace) -> dict[int, int]:
    """The turn that waits for each request, for those that have one without an arrival time of its own."""
    before = trace.previous_turn()
    return {int(b): i for i, b in enumerate(before.tolist()) if b >= 0 and np.isnan(trace.arrival_time[i])}


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
