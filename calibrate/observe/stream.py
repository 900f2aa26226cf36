"""One request to an OpenAI-compatible server, and the time of every token of its streamed answer.

A chunk is a network event and may carry several tokens or none (part of a character, a role). Where the server counts
for us (``continuous_usage_stats``, vLLM's) every token gets the time of the chunk that brought it; else each chunk with
text is one token, and if the final count says otherwise only the first and the last time are kept.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from calibrate.observe.observation import ObservedRequest
from simulator.results import CANCELLED, FAILED, FINISHED, REJECTED, STATUS

__all__ = ["stream_answer"]

SHOWN = 160
"""Characters of a server's message that a reason keeps."""


class RefusalError(Exception):
    """The server answered with an error: *status* is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}" if message else f"HTTP {status}")
        self.status, self.message = status, message


class BrokenStreamError(Exception):
    """The answer ended before it was whole."""


@dataclass
class Answer:
    """What has come so far."""

    request: ObservedRequest
    clock: Callable[[], float]
    counted: bool = False
    total: int | None = None
    done: bool = False

    def event(self, event: dict[str, Any], now: float) -> None:
        """Take one event in that came at *now*."""
        if event.get("error"):
            raise BrokenStreamError(f"the server said: {_message(event)}")
        choices, usage = event.get("choices") or [], event.get("usage") or {}
        first = next((choice for choice in choices if choice.get("index", 0) == 0), None)
        if usage:
            self._usage(usage, first, now, whole=not choices)
        elif first is not None and _has_text(first):
            self._tokens(1, now)
        if first is not None and first.get("finish_reason"):
            self.done = True

    def _usage(self, usage: dict[str, Any], first: dict[str, Any] | None, now: float, *, whole: bool) -> None:
        details = usage.get("prompt_tokens_details") or {}
        self.request.cached_tokens = details.get("cached_tokens") or self.request.cached_tokens
        self.request.input_length = usage.get("prompt_tokens") or self.request.input_length
        count = usage.get("completion_tokens")
        if whole:
            self.total = count
        elif first is not None and count is not None:
            self.counted = True
            self._tokens(count - self.request.output_length, now)

    def _tokens(self, count: int, now: float) -> None:
        request = self.request
        if count <= 0 or request.token_times is None:
            return
        if not request.output_length:
            request.first_token = now
        request.output_length += count
        request.token_times += [now] * count
        request.finish = now

    def close(self, samples: int) -> None:
        """The stream has ended. Raises `BrokenStreamError` unless the answer is whole."""
        request = self.request
        if not self.done:
            raise BrokenStreamError("the stream ended")
        if not self.counted and samples == 1 and self.total not in (None, request.output_length):
            request.output_length, request.token_times = int(self.total or 0), None


async def stream_answer(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    request: ObservedRequest,
    clock: Callable[[], float],
) -> None:
    """Send *body*; fill *request*, whatever happens. Cancellation passes through, with what came kept."""
    answer = Answer(request, clock)
    request.sent = clock()
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                raise RefusalError(response.status, _error_text(await response.text()))
            async for event in _events(response):
                answer.event(event, clock())
        answer.close(body.get("n", 1))
    except RefusalError as error:
        _leave(request, FAILED if error.status >= 500 else REJECTED, str(error), clock())
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ConnectionRefusedError):
        _leave(request, FAILED, CANNOT_CONNECT, clock())
    except TimeoutError:
        silence = session.timeout.sock_read
        _leave(request, FAILED, f"no data for {silence:g} s {_progress(request)}", clock())
    except (aiohttp.ClientError, OSError):
        _leave(request, FAILED, f"connection closed {_progress(request)}", clock())
    except BrokenStreamError as error:
        _leave(request, FAILED, f"{error} {_progress(request)}", clock())
    except BaseException:
        _leave(request, CANCELLED, f"interrupted {_progress(request)}", clock())
        raise
    else:
        request.status = STATUS[FINISHED]
        if not request.output_length:
            request.finish = clock()


CANNOT_CONNECT = "cannot connect"


def _leave(request: ObservedRequest, status: int, reason: str, now: float) -> None:
    request.status, request.reason, request.finish = STATUS[status], reason, now


def _progress(request: ObservedRequest) -> str:
    """How far it came, in classes, so that equal reasons are counted together."""
    if not request.output_length:
        return "before the first token"
    return "in mid-answer" if request.output_length < request.output_wanted else "after the last token"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of every ``data:`` line, as it comes."""
    rest = b""
    async for part in response.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]" or not data:
                continue
            yield _parse(data)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise BrokenStreamError("the server sent what is not JSON") from None
    if not isinstance(event, dict):
        raise BrokenStreamError("the server sent what is not an event")
    return event


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(
        choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    )


def _error_text(text: str) -> str:
    try:
        return _message(json.loads(text))
    except (ValueError, AttributeError):
        return _short(text)


def _message(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    inner = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return _short(str(inner or body))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
