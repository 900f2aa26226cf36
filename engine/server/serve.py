"""The server process: uvicorn around the application, and what happens at SIGTERM.

At the first signal the server takes no more requests; those inside have ``drain_seconds`` to end, then
they get an error (503, or an error event in a stream) and the process goes.
"""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn

from engine.server.app import create_app
from engine.server.executor import ServingExecutor
from engine.server.front import Front, Limits

__all__ = ["DrainingServer", "serve"]

GRACE = 5.0  # s that connections have to take their last bytes once everything has ended


class DrainingServer(uvicorn.Server):
    """uvicorn's server that drains the front when it is told to exit."""

    def __init__(self, config: uvicorn.Config, front: Front) -> None:
        super().__init__(config)
        self.front = front
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._drain)
        super().handle_exit(sig, frame)

    def _drain(self) -> None:
        if self._ending is None:
            self.front.drain()
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        deadline = self._loop.time() + self.front.limits.drain_seconds
        while self.front.num_inside and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.front.stop)


def make_server(
    executor: ServingExecutor, limits: Limits, host: str, port: int, log_level: str = "warning"
) -> DrainingServer:
    """A server that is ready to run."""
    app = create_app(executor, limits)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        timeout_graceful_shutdown=int(limits.drain_seconds + GRACE + 1),
    )
    return DrainingServer(config, app.state.front)


def serve(executor: ServingExecutor, limits: Limits, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until a signal ends it."""
    make_server(executor, limits, host, port, "info").run()
