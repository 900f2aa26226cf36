"""OpenAI's completions and chat completions over any `ServingExecutor`, with health and metrics.

Errors have OpenAI's form and a status that says whose fault it was: 400 and 413 the request's, 401 the
key's, 404 the model's name, 429 too many, 500 the engine, 503 shutting down.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from engine.server.answers import Answer, Choice, usage
from engine.server.executor import ServingExecutor, Update
from engine.server.front import ApiError, Front, Limits, Ticket
from engine.server.schema import ChatRequest, CompletionRequest, GenerationRequest, StreamOptions
from engine.server.streaming import EventStream, unless_disconnected
from simulator.errors import SimError

__all__ = ["create_app"]

Body = TypeVar("Body", bound=GenerationRequest)


def create_app(executor: ServingExecutor, limits: Limits | None = None) -> FastAPI:
    """The HTTP application; ``app.state.front`` is the `Front`."""
    front = Front(executor, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        executor.start()
        yield
        await asyncio.to_thread(front.stop)

    app = FastAPI(title="engine", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.front = front
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    _add_routes(app, front)
    return app


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    api = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(api.body(), status_code=error.status_code)


def _add_routes(app: FastAPI, front: Front) -> None:
    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("draining\n" if front.draining else "", 503 if front.draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = front.metrics.render(front.executor.stats())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": f"servesim-{metadata.version('servesim')}"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check_key(request, front)
        executor = front.executor
        card = {"id": executor.model_name, "object": "model", "created": 0, "owned_by": "engine"}
        return {"object": "list", "data": [{**card, "max_model_len": executor.max_model_len}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await _read(request, front, CompletionRequest)
        return await _complete(request, front, body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await _read(request, front, ChatRequest)
        return await _chat(request, front, body)


# reading


def _check_key(request: Request, front: Front) -> None:
    key = front.limits.api_key
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise ApiError(401, "the API key is missing or wrong", "authentication_error")


async def _read(request: Request, front: Front, kind: type[Body]) -> Body:
    _check_key(request, front)
    data = await _bytes(request, front.limits.max_body_bytes)
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        raise _validation(error) from error
    if body.model is not None and body.model != front.executor.model_name:
        message = f"model {body.model!r} is not served here: {front.executor.model_name!r} is"
        raise ApiError(404, message, param="model")
    return body


async def _bytes(request: Request, limit: int) -> bytes:
    """The body, read no further than *limit*."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise ApiError(413, f"a body of {declared} bytes: at most {limit}")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise ApiError(413, f"a body of more than {limit} bytes: at most {limit}")
    return bytes(data)


def _validation(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return ApiError(400, f"{where}: {first['msg']}", param=where)


# answering


async def _complete(request: Request, front: Front, body: CompletionRequest) -> Response:
    try:
        given = body.prompts()
        prompts = [_encode(front, prompt) for prompt in given]
        params = body.params(body.max_tokens, body.logprobs)
    except SimError as error:
        raise ApiError(400, str(error)) from error
    tokenizer = front.executor.tokenizer
    echoes = [""] * len(prompts)
    if body.echo:
        echoes = [p if isinstance(p, str) else tokenizer.decode(p) for p in given]
    return await _answer(request, front, body, prompts, echoes, front.admit(prompts, params), chat=False)


async def _chat(request: Request, front: Front, body: ChatRequest) -> Response:
    try:
        prompt = _encode(front, front.executor.tokenizer.chat([m.plain() for m in body.messages]))
        params = body.params(body.limit() or front.room(prompt), body.num_logprobs())
    except SimError as error:
        raise ApiError(400, str(error)) from error
    return await _answer(request, front, body, [prompt], [""], front.admit([prompt], params), chat=True)


def _encode(front: Front, prompt: str | list[int]) -> list[int]:
    return front.executor.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


async def _answer(
    request: Request,
    front: Front,
    body: GenerationRequest,
    prompts: list[list[int]],
    echoes: list[str],
    tickets: list[Ticket],
    *,
    chat: bool,
) -> Response:
    answer = Answer(
        tickets[0].id,
        front.executor.model_name,
        front.executor.tokenizer,
        chat=chat,
        logprobs=tickets[0].params.logprobs is not None,
    )
    exchange = Exchange(answer, tickets, echoes, body.n)
    if not body.stream:
        whole = await unless_disconnected(request, exchange.whole())
        return Response(status_code=499) if whole is None else JSONResponse(whole)
    events = exchange.events(body.stream_options or StreamOptions())
    # The first event comes before the status is sent: what is refused is refused with a status.
    first = await unless_disconnected(request, anext(events))
    if first is None:
        await events.aclose()
        return Response(status_code=499)
    return EventStream(_with_first(first, events))


async def _with_first(
    first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[dict[str, Any], None]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()


class Exchange:
    """All prompts of one HTTP request and their choices."""

    def __init__(self, answer: Answer, tickets: list[Ticket], echoes: list[str], n: int) -> None:
        self.answer, self.tickets, self.echoes, self.n = answer, tickets, echoes, n
        self.choices = [Choice(i) for i in range(n * len(tickets))]
        self.cached = 0
        for choice in self.choices:
            choice.text = echoes[choice.index // n]

    async def updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Updates of all prompts as they come, each with its choice's index; cancels what is left when
        closed.
        """
        queue: asyncio.Queue[tuple[int, Update] | Exception | None] = asyncio.Queue()
        readers = [asyncio.create_task(self._forward(k, t, queue)) for k, t in enumerate(self.tickets)]
        try:
            left = len(readers)
            while left:
                item = await queue.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    self.cached = max(self.cached, item[1].cached_tokens)
                    self.choices[item[0]].add(item[1])
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            for ticket in self.tickets:
                ticket.close()

    async def _forward(self, k: int, ticket: Ticket, queue: asyncio.Queue[Any]) -> None:
        try:
            async for update in ticket:
                queue.put_nowait((k * self.n + update.index, update))
            queue.put_nowait(None)
        except ApiError as error:
            queue.put_nowait(error)

    async def whole(self) -> dict[str, Any]:
        """The answer once everything has ended."""
        async for _ in self.updates():
            pass
        return self.answer.whole(self.choices, self._usage())

    async def events(self, options: StreamOptions) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream; an error in mid-stream is its last event."""
        opened: set[int] = set()
        counted = options.include_usage and options.continuous_usage_stats
        try:
            async for index, update in self.updates():
                if index not in opened:
                    opened.add(index)
                    for event in self._opening(index):
                        yield event
                said = update.text or update.finish_reason is not None or update.logprobs
                if said or (counted and update.tokens):  # part of a character has no text of its own yet
                    chunk = self.answer.chunk(index, update)
                    yield {**chunk, "usage": self._usage_of(index)} if counted else chunk
        except ApiError as error:
            if not opened:
                raise
            yield error.body()
            return
        if options.include_usage:
            yield self.answer.last(self._usage())

    def _opening(self, index: int) -> list[dict[str, Any]]:
        if self.answer.chat:
            return [self.answer.first(index)]
        echo = self.echoes[index // self.n]
        return [self.answer.chunk(index, Update(0, 0.0, text=echo))] if echo else []

    def _usage_of(self, index: int) -> dict[str, Any]:
        prompt = self.tickets[index // self.n].prompt
        return usage(len(prompt), len(self.choices[index].tokens), self.cached)

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = sum(len(ticket.prompt) for ticket in self.tickets)
        return usage(prompt_tokens, sum(len(choice.tokens) for choice in self.choices), self.cached)
