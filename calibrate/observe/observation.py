"""What a client saw of a serving system: when each request was sent, and when its tokens came.

A client cannot see batches or blocks, only its own requests; vLLM's ``/metrics`` adds queue lengths and the share of
the KV cache in use. An observation is the same table as a simulated run (`Observation.records`), so that both are
read with the same code. Latencies count from the moment of sending, as vLLM's benchmark counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.results import (
    CANCELLED,
    FAILED,
    FINISHED,
    REJECTED,
    STATUS,
    InterTokenLatency,
    Records,
    RecordsBuilder,
    Summary,
    summarize,
)
from simulator.workload import Runs, Trace

__all__ = ["COMPLETE", "INTERRUPTED", "NOT_SENT", "Header", "MetricsSample", "Observation", "ObservedRequest"]

COMPLETE, INTERRUPTED = "complete", "interrupted"
NOT_SENT = "not sent"
CODES = {STATUS[code]: code for code in (FINISHED, REJECTED, FAILED, CANCELLED)}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Header:
    """Where an observation comes from; what is not known is None."""

    source: str
    """What recorded it: ``sim calibrate observe``, ``vllm bench serve``, ``guidellm 0.8.1``."""
    date: str
    """ISO date of the run."""
    num_requests: int
    """Requests that were to be sent; fewer are recorded where the run ended early."""
    url: str | None = None
    model: str | None = None
    server: str | None = None
    """Version of the server, as it states it."""
    endpoint: str | None = None
    max_concurrency: int | None = None
    num_gpu_blocks: int | None = None
    block_size: int | None = None
    trace: str | None = None
    """File that was replayed or imported."""
    timeout: float | None = None
    """Seconds of silence after which a request was given up."""


@dataclass
class ObservedRequest:
    """One request; times in seconds from the start, NaN where it did not come to that.

    *token_times* is None where the source kept only the first and the last. *content*: runs (content id, tokens)
    that its prompt shares with others, as in `simulator.workload.Trace`.
    """

    id: str
    arrival: float
    """When the trace asks for it."""
    input_length: int
    output_wanted: int
    """Tokens asked for; 0 where that is not known."""
    sent: float = math.nan
    first_token: float = math.nan
    finish: float = math.nan
    """Its last token, or when it was given up."""
    output_length: int = 0
    token_times: list[float] | None = field(default_factory=list)
    cached_tokens: int = 0
    status: str = NOT_SENT
    reason: str | None = None
    content: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class MetricsSample:
    """The server's own counters at *time* (s from the start)."""

    time: float
    running: float
    waiting: float
    kv_usage: float
    """Share of the KV blocks in use, 0 to 1."""
    preemptions: float = 0.0
    """Since the server started."""


@dataclass
class Observation:
    """Requests in order of arrival, samples in order of time. *ended* says why it ended; None: the file was cut."""

    header: Header
    requests: list[ObservedRequest]
    samples: list[MetricsSample] = field(default_factory=list)
    ended: str | None = COMPLETE
    path: Path | None = None

    @property
    def partial(self) -> bool:
        """Whether requests that were to be sent are missing or were broken off."""
        return self.ended != COMPLETE

    @property
    def finished(self) -> list[ObservedRequest]:
        """The requests that got their whole answer."""
        return [request for request in self.requests if request.status == STATUS[FINISHED]]

    def counts(self) -> dict[str, int]:
        """Requests by status, ``not sent`` among them, and those without a record."""
        found: dict[str, int] = {}
        for request in self.requests:
            found[request.status] = found.get(request.status, 0) + 1
        unseen = self.header.num_requests - len(self.requests)
        if unseen > 0:
            found[NOT_SENT] = found.get(NOT_SENT, 0) + unseen
        return found

    def reasons(self) -> dict[str, int]:
        """How often each reason occurs among requests that did not finish, most frequent first."""
        found: dict[str, int] = {}
        for request in self.requests:
            if request.reason and request.status in CODES and request.status != STATUS[FINISHED]:
                found[request.reason] = found.get(request.reason, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def lateness(self) -> Floats:
        """Seconds by which each request was sent after the trace asked for it."""
        sent = np.array([request.sent for request in self.requests])
        due = np.array([request.arrival for request in self.requests])
        return np.asarray((sent - due)[~np.isnan(sent)])

    def records(self) -> Records:
        """The table of a run. Requests count as arrived when they were sent; of those never sent nothing is known."""
        builder = RecordsBuilder(len(self.requests))
        for i, request in enumerate(self.requests):
            builder.input_length[i], builder.output_length[i] = request.input_length, request.output_length
            if request.status == NOT_SENT:
                continue
            builder.arrival_time[i], builder.first_token_time[i] = request.sent, request.first_token
            builder.cached_tokens[i], builder.replica[i] = request.cached_tokens, 0
            code = CODES[request.status]
            builder.status[i], builder.finish_time[i] = code, request.finish
            if code != FINISHED:
                builder.leave(i, code, request.reason or "no reason was recorded", request.finish)
        return builder.build(request_id=[request.id for request in self.requests])

    def gaps(self) -> Floats:
        """Every gap between two tokens of a finished request, s; empty where the source kept none."""
        times = [r.token_times for r in self.finished if r.token_times is not None and len(r.token_times) > 1]
        return np.concatenate([np.diff(each) for each in times]) if times else np.empty(0)

    def summary(self, percentiles: Sequence[float] = (50, 90, 99)) -> Summary:
        """Latencies and throughput, by the formulas of a simulated run."""
        itl = InterTokenLatency()
        itl.add_each(self.gaps().tolist())
        found = summarize(self.records(), itl, [], percentiles=percentiles)
        return replace(found, values={**found.values, "max_output_tokens_per_s": self.peak_rate()})

    def peak_rate(self) -> float | None:
        """Most tokens that came in one of the one-second windows from the first sending; None if times are missing."""
        times = [request.token_times for request in self.finished]
        known = [each for each in times if each is not None]
        if not times or len(known) < len(times):
            return None
        since = np.concatenate(known) - min(request.sent for request in self.finished)
        return float(np.bincount(since.astype(np.int64)).max())

    def kept(self) -> list[ObservedRequest]:
        """The requests that the server worked on: sent, not refused, and answered with at least a token."""
        working = (STATUS[FINISHED], STATUS[FAILED], STATUS[CANCELLED])
        return [r for r in self.requests if r.status in working and r.input_length and r.output_length]

    def trace(self) -> Trace:
        """What the server got, for a simulation: arrivals are the moments of sending, outputs what came of them."""
        kept = sorted(self.kept(), key=lambda request: request.sent)
        if not kept:
            raise InputError(self.path or "observation", "holds no request that the server worked on")
        outputs = [request.output_length for request in kept]
        first = kept[0].sent
        return Trace.from_columns(
            [request.sent - first for request in kept],
            [request.input_length for request in kept],
            outputs,
            max_tokens=outputs,
            request_id=[request.id for request in kept],
            content=_runs(kept),
            max_concurrency=self.header.max_concurrency,
        )


def _runs(requests: Sequence[ObservedRequest]) -> Runs | None:
    pairs = [pair for request in requests for pair in request.content]
    if not pairs:
        return None
    offsets = np.concatenate([[0], np.cumsum([len(request.content) for request in requests])])
    ids, tokens = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return Runs(offsets.astype(np.int64), ids, tokens)
