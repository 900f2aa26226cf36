"""A server whose every answer is scripted, so that what a client ought to have seen is known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

GAP = 0.02
"""Seconds between two tokens."""


@dataclass
class Script:
    """What the fake server does. *fate* of a request by its input length: answer whole unless it says otherwise."""

    fates: dict[int, str] = field(default_factory=dict)
    counts: bool = True
    """Whether it counts tokens per chunk."""
    ids: bool = True
    """Whether it takes prompts as token ids."""
    vocabulary: int = 128_000
    metrics: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)


class FakeServer:
    """Completions with one token every `GAP` seconds, each chunk after the first holding two of them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.runner, port = self._call(self._start())
        self.url = f"http://127.0.0.1:{port}"

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    def vanish(self) -> None:
        """No more connections, and the open ones are cut."""
        self.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.runner.cleanup()))

    def stop(self) -> None:
        self._call(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.script.metrics, status=200 if self.script.metrics else 404)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body, script = await request.json(), self.script
        prompt = body.get("prompt") or body["messages"][0]["content"]
        length = len(prompt) if isinstance(prompt, list) else 2 * len(prompt.split()) + 7
        if refusal := self._refusal(body, prompt):
            return web.json_response({"error": {"message": refusal}}, status=400)
        script.seen.append(body)
        fate = script.fates.get(length, "whole")
        if fate.isdecimal():
            return web.json_response({"error": {"message": f"no luck with {length}"}}, status=int(fate))
        return await self._stream(request, body, length, fate)

    def _refusal(self, body: dict[str, Any], prompt: Any) -> str | None:
        script = self.script
        if isinstance(prompt, list) and not script.ids:
            return "prompt must be a string"
        if isinstance(prompt, list) and max(prompt) >= script.vocabulary:
            return f"token id {max(prompt)} is out of vocabulary"
        if body.get("stream_options", {}).get("continuous_usage_stats") and not script.counts:
            return "Extra inputs are not permitted: continuous_usage_stats"
        return None

    async def _stream(
        self, request: web.Request, body: dict[str, Any], length: int, fate: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        total, done = body["max_tokens"], 0
        if fate == "short":
            total -= 1
        while done < total:
            count = min(2 if done else 1, total - done)
            await asyncio.sleep(GAP)
            done += count
            if done > 3 and fate == "hang":
                await asyncio.sleep(60)
            if done > 3 and fate == "close":
                request.transport.abort()  # type: ignore[union-attr]
                return response
            if done > 3 and fate == "stop":
                return response
            if done > 3 and fate == "garbage":
                await response.write(b"data: {oops\n\n")
                return response
            if done > 3 and fate == "error":
                await response.write(b'data: {"error": {"message": "the engine died"}}\n\n')
                return response
            await response.write(self._chunk(body, length, done, count, done == total))
        usage = {
            "prompt_tokens": length,
            "completion_tokens": done,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        await response.write(
            f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
        )
        return response

    def _chunk(self, body: dict[str, Any], length: int, done: int, count: int, last: bool) -> bytes:
        text = {"text": "x" * count} if "prompt" in body else {"delta": {"content": "x" * count}}
        chunk: dict[str, Any] = {
            "choices": [{"index": 0, **text, "finish_reason": "length" if last else None}]
        }
        if body.get("stream_options", {}).get("continuous_usage_stats"):
            chunk["usage"] = {"prompt_tokens": length, "completion_tokens": done}
        return f"data: {json.dumps(chunk)}\n\n".encode()


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeServer]]:
    """A server that runs the script of these keyword arguments."""
    servers: list[FakeServer] = []

    def start(**script: Any) -> FakeServer:
        servers.append(FakeServer(Script(**script)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def trace_file(tmp_path: Path) -> Callable[..., Path]:
    """A canonical trace of (s, prompt, output) rows, or of mappings."""

    def write(*rows: Any) -> Path:
        path = tmp_path / "trace.jsonl"
        lines = [
            row
            if isinstance(row, dict)
            else {"timestamp": round(1e3 * row[0]), "input_length": row[1], "output_length": row[2]}
            for row in rows
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write
