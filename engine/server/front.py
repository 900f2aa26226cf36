"""Requests on their way through the server: admission, what each client is owed, and the end of the
server's life.

The front counts every request that is inside, refuses what exceeds its limits, and makes sure that a client
that leaves takes its blocks along: whoever reads a `Ticket` cancels it when the reading stops early.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from engine.params import SamplingParams
from engine.server.executor import ServingExecutor, Update
from engine.server.metrics import Metrics, RequestTimes

__all__ = ["ApiError", "Front", "Limits", "Ticket"]


@dataclass(frozen=True)
class Limits:
    """What a client may do. *max_tokens* None: whatever the model's context allows; *max_queue* counts
    prompts inside.
    """

    max_body_bytes: int = 4 * 1024 * 1024
    max_tokens: int | None = None
    max_queue: int = 1024
    drain_seconds: float = 30.0
    api_key: str | None = None


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param

    def body(self) -> dict[str, dict[str, str | int | None]]:
        """The JSON body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


class Ticket:
    """One prompt inside the server; iterate to get its updates until all *n* samples have ended."""

    def __init__(self, front: Front, prompt: list[int], params: SamplingParams) -> None:
        self.front, self.prompt, self.params = front, prompt, params
        self.id = uuid.uuid4().hex
        self.times = [RequestTimes(front.executor.clock()) for _ in range(params.n)]
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._left = params.n
        self._open = True

    def deliver(self, update: Update) -> None:
        """Called from the executor's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, update)

    async def __aiter__(self) -> AsyncIterator[Update]:
        while self._left:
            update = await self._queue.get()
            if update.error is not None:
                self._left = 0
                self.close()
                raise _error(update)
            self._count(update)
            yield update
        self.close()

    def _count(self, update: Update) -> None:
        times, metrics = self.times[update.index], self.front.metrics
        times.scheduled = update.scheduled
        metrics.tokens(times, len(update.tokens), update.time)
        if update.finish_reason is not None:
            self._left -= 1
            metrics.finished(times, len(self.prompt) if update.index == 0 else 0, update.finish_reason)

    def close(self) -> None:
        """Nobody reads on: what has not ended is cancelled."""
        if self._open:
            self._open = False
            self.front.num_inside -= 1
            if self._left:
                self.front.metrics.finished(self.times[0], len(self.prompt), "abort")
                self.front.executor.cancel(self.id)


class Front:
    """The door: limits, metrics, and whether the server still takes requests."""

    def __init__(self, executor: ServingExecutor, limits: Limits) -> None:
        self.executor, self.limits = executor, limits
        self.metrics = Metrics(executor.model_name)
        self.num_inside = 0
        self.draining = False

    def admit(self, prompts: list[list[int]], params: SamplingParams) -> list[Ticket]:
        """Take *prompts* in, all or none. Raises ApiError where a limit says no."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", "server_error")
        if self.num_inside + len(prompts) > self.limits.max_queue:
            raise ApiError(
                429,
                f"{self.num_inside} prompts are inside already: at most {self.limits.max_queue}",
                "rate_limit_error",
            )
        for prompt in prompts:
            self._check(prompt, params)
        tickets = [Ticket(self, prompt, params) for prompt in prompts]
        self.num_inside += len(tickets)
        for ticket in tickets:
            self.executor.submit(ticket.id, ticket.prompt, params, ticket.deliver)
        return tickets

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        if not prompt:
            raise ApiError(400, "the prompt has no tokens", param="prompt")
        longest = self.executor.max_model_len
        if len(prompt) + params.max_tokens > longest:
            raise ApiError(
                400,
                f"a prompt of {len(prompt)} tokens and max_tokens {params.max_tokens}: at most {longest}",
                param="max_tokens",
            )
        bound = self.limits.max_tokens
        if bound is not None and params.max_tokens > bound:
            raise ApiError(400, f"max_tokens {params.max_tokens}: at most {bound}", param="max_tokens")

    def room(self, prompt: list[int]) -> int:
        """Tokens that an answer to *prompt* may have where the client sets no limit."""
        room = max(1, self.executor.max_model_len - len(prompt))
        return room if self.limits.max_tokens is None else min(room, self.limits.max_tokens)

    def drain(self) -> None:
        """Take no more requests; those inside have `Limits.drain_seconds` to end."""
        self.draining = True

    def stop(self) -> None:
        """End what is still inside with an error."""
        self.draining = True
        self.executor.stop("the server is shutting down")


def _error(update: Update) -> ApiError:
    assert update.error is not None
    if update.refused:
        return ApiError(400, update.error)
    status = 503 if "shutting down" in update.error else 500
    return ApiError(status, update.error, "server_error")
