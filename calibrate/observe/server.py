"""What an OpenAI-compatible server says of itself, and which dialect it speaks.

Servers differ in what they accept: prompts as token ids (vLLM, SGLang) or only as text, vLLM's ``ignore_eos`` and
counts per chunk. A short request finds out, before the clock starts, so that nothing is refused in mid-run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from calibrate.observe.observation import MetricsSample, ObservedRequest
from calibrate.observe.prompts import HIGH_IDS, LOW_IDS, TextScale, prompt_tokens, prompt_words
from calibrate.observe.stream import CANNOT_CONNECT, stream_answer
from simulator.errors import ConfigurationError, InputError
from simulator.results import FINISHED, STATUS

__all__ = ["Dialect", "Server", "connect", "parse_metrics"]

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
OPTIONAL = ("continuous_usage_stats", "stream_options", "ignore_eos", "temperature")
"""What a server may refuse, and can be left out."""
PROBE_TOKENS = 4
PROBE_WORDS = (16, 256)
SCRAPE_TIMEOUT = 5.0


UNSCALED = TextScale()


@dataclass(frozen=True)
class Dialect:
    """How requests are put: *ids* bounds the token ids, None: text, of *scale* tokens per word."""

    endpoint: str = "completions"
    ids: tuple[int, int] | None = HIGH_IDS
    scale: TextScale = UNSCALED
    options: frozenset[str] = frozenset(OPTIONAL)

    def body(self, model: str, tokens: list[int], max_tokens: int, samples: int = 1) -> dict[str, Any]:
        """A streamed request for exactly *max_tokens* tokens."""
        body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": True}
        if "stream_options" in self.options:
            counts = {"continuous_usage_stats": True} if "continuous_usage_stats" in self.options else {}
            body["stream_options"] = {"include_usage": True, **counts}
        if "ignore_eos" in self.options:
            body["ignore_eos"] = True
        if "temperature" in self.options:
            body["temperature"] = 0
        if samples > 1:
            body["n"] = samples
            body.pop("temperature", None)  # vLLM refuses several greedy samples
        return {**body, **self._prompt(tokens)}

    def _prompt(self, tokens: list[int]) -> dict[str, Any]:
        if self.endpoint == "completions" and self.ids is not None:
            return {"prompt": tokens}
        text = prompt_words(tokens)
        return (
            {"prompt": text}
            if self.endpoint == "completions"
            else {"messages": [{"role": "user", "content": text}]}
        )

    def tokens(self, content: list[tuple[int, int]], length: int, index: int, seed: int) -> list[int]:
        """Ids (in text mode: words) of a prompt that is *length* tokens long."""
        count = length if self.ids is not None else self.scale.words(length)
        return prompt_tokens(content, count, index, self.ids or HIGH_IDS, seed)

    def describe(self) -> str:
        """In a few words."""
        kind = "text" if self.ids is None else f"token ids from {self.ids[0]} to {self.ids[1] - 1}"
        without = sorted(set(OPTIONAL) - self.options)
        return f"{PATHS[self.endpoint]}, prompts as {kind}" + (
            f", without {', '.join(without)}" if without else ""
        )


@dataclass
class Server:
    """A server that answers."""

    session: aiohttp.ClientSession
    url: str
    model: str
    dialect: Dialect
    version: str | None = None
    num_gpu_blocks: int | None = None
    block_size: int | None = None
    has_metrics: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        return self.url + PATHS[self.dialect.endpoint]

    async def sample(self, time: float) -> MetricsSample | None:
        """The counters now; None where the server does not give them in time."""
        text = await _text(self.session, f"{self.url}/metrics")
        return None if text is None else metrics_sample(parse_metrics(text), time)


async def connect(
    session: aiohttp.ClientSession, url: str, model: str | None, endpoint: str, prompts: str
) -> Server:
    """Find out what stands at *url*. Raises `InputError` where nothing useful does."""
    names = await _models(session, url)
    if model is None:
        if not names:
            raise InputError(url, "does not list its models: name one with --model")
        model = names[0]
    elif names and model not in names:
        raise InputError(url, f"serves {', '.join(names)}", field="model", value=model)
    server = Server(session, url, model, Dialect(endpoint))
    server.dialect = await _find_dialect(server, prompts)
    server.version = await _version(session, url)
    text = await _text(session, f"{url}/metrics")
    if text is not None:
        metrics = parse_metrics(text)
        server.has_metrics = metrics_sample(metrics, 0.0) is not None
        server.num_gpu_blocks, server.block_size = cache_size(metrics)
    return server


# what it serves


async def _models(session: aiohttp.ClientSession, url: str) -> list[str]:
    try:
        async with session.get(f"{url}/v1/models") as response:
            if response.status == 401:
                raise InputError(url, "refuses the API key: give --api-key, or set OPENAI_API_KEY")
            if response.status != 200:
                return []
            listed = json.loads(await response.text())
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise InputError(url, f"cannot be reached: {_why(error)}") from None
    except ValueError:
        raise InputError(
            url, "does not answer as an OpenAI-compatible server: /v1/models is not JSON"
        ) from None
    cards = listed.get("data", []) if isinstance(listed, dict) else []
    return [str(card["id"]) for card in cards if isinstance(card, dict) and "id" in card]


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    number = getattr(getattr(error, "os_error", error), "errno", None)
    if isinstance(number, int) and number > 0:  # negative: of the resolver
        return os.strerror(number).lower()
    return " ".join(str(error).split()) or type(error).__name__


async def _version(session: aiohttp.ClientSession, url: str) -> str | None:
    text = await _text(session, f"{url}/version")
    try:
        return None if text is None else str(json.loads(text)["version"])
    except (ValueError, KeyError, TypeError):
        return None  # another server's page


async def _text(session: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT), session.get(url) as response:
            return await response.text() if response.status == 200 else None
    except (TimeoutError, aiohttp.ClientError, OSError, UnicodeDecodeError):
        return None


# which dialect it speaks


async def _find_dialect(server: Server, prompts: str) -> Dialect:
    endpoint = server.dialect.endpoint
    as_ids = endpoint == "completions" and prompts != "text"
    forms = [*([HIGH_IDS, LOW_IDS] if as_ids else []), *([None] if prompts != "tokens" or not as_ids else [])]
    refusals: list[str] = []
    for ids in forms:
        dialect = replace(server.dialect, ids=ids)
        while True:
            said = await _probe(server, dialect, PROBE_TOKENS)
            if isinstance(said, int):
                return dialect if ids is not None else await _with_scale(server, dialect)
            refusals.append(said)
            named = next((name for name in OPTIONAL if name in said and name in dialect.options), None)
            if named is None:
                break
            dialect = replace(dialect, options=dialect.options - {named})
    raise InputError(server.url, f"{PATHS[endpoint]} refuses a short request: {refusals[0]}")


async def _with_scale(server: Server, dialect: Dialect) -> Dialect:
    """*dialect* with the tokens per word that the server counts."""
    found = []
    for words in PROBE_WORDS:
        counted = await _probe(server, dialect, words)
        if not isinstance(counted, int):
            raise InputError(server.url, f"refuses a prompt of {words} words: {counted}")
        found.append((words, counted))
    if found[0][1] >= found[1][1]:
        raise InputError(
            server.url, "does not count prompt tokens: prompts of a wanted length need token ids"
        )
    return replace(dialect, scale=TextScale.through(*found))


async def _probe(server: Server, dialect: Dialect, length: int) -> int | str:
    """Prompt tokens that the server counted for a prompt of *length* ids or words, or why it refused."""
    last = (dialect.ids or HIGH_IDS)[1] - 1
    tokens = [last, *prompt_tokens([], length - 1, 0, dialect.ids or HIGH_IDS, seed=1)]
    request = ObservedRequest("probe", 0.0, 0, 2)
    url = server.url + PATHS[dialect.endpoint]
    loop = asyncio.get_running_loop()
    await stream_answer(server.session, url, dialect.body(server.model, tokens, 2), request, loop.time)
    if request.status == STATUS[FINISHED]:
        return request.input_length
    reason = str(request.reason)
    if reason == CANNOT_CONNECT or not reason.startswith("HTTP 4"):
        raise InputError(server.url, f"{PATHS[dialect.endpoint]}: a short request failed: {reason}")
    return reason


# its metrics

LINE = re.compile(r"^(?:vllm:|vllm_)?([A-Za-z_][\w:]*)(\{.*\})?\s+(\S+)(?:\s+\d+)?$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Metrics = dict[str, list[tuple[dict[str, str], float]]]
USAGE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")
"""Now, and until vLLM 0.10."""


def parse_metrics(text: str) -> Metrics:
    """Prometheus' text format: (labels, value) of every sample, by name without vLLM's prefix."""
    found: Metrics = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else LINE.match(line.strip())
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        found.setdefault(match[1], []).append((dict(LABEL.findall(match[2] or "")), value))
    return found


def metrics_sample(metrics: Metrics, time: float) -> MetricsSample | None:
    """Queues and KV cache of all engines behind the address; None where there are no such metrics."""
    usage = next((metrics[name] for name in USAGE if name in metrics), None)
    if usage is None or "num_requests_running" not in metrics:
        return None
    return MetricsSample(
        time,
        running=_sum(metrics, "num_requests_running"),
        waiting=_sum(metrics, "num_requests_waiting"),
        kv_usage=sum(value for _, value in usage) / len(usage),
        preemptions=_sum(metrics, "num_preemptions_total"),
    )


def cache_size(metrics: Metrics) -> tuple[int | None, int | None]:
    """(KV blocks of all engines together, tokens per block) of ``cache_config_info``, where it is exposed."""
    infos = [labels for labels, _ in metrics.get("cache_config_info", ())]
    blocks = _whole(info.get("num_gpu_blocks") for info in infos)
    sizes = _whole(info.get("block_size") for info in infos)
    return (sum(blocks) if blocks else None), (sizes[0] if sizes else None)


def _whole(texts: Iterable[str | None]) -> list[int]:
    return [int(text) for text in texts if text is not None and text.isdecimal()]


def _sum(metrics: Metrics, name: str) -> float:
    return sum(value for _, value in metrics.get(name, ()))


def check_url(url: str) -> str:
    """*url* without a trailing slash or ``/v1``. Raises `ConfigurationError` for what is no address."""
    if not re.match(r"https?://[^/]+", url):
        raise ConfigurationError(f"--url {url!r}: must be an address such as http://localhost:8000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
