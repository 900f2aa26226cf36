"""A request trace as columns: who asks when, for how much, and what the prompts have in common.

One entry per request in arrival order. Times are seconds from the trace's start, lengths are tokens. A later
turn of a closed-loop session has no arrival of its own (NaN): it is sent `delay` seconds after the turn
before it has completed. A closed loop over the whole trace is `max_concurrency`: a request is sent at its
arrival time or when fewer than that many are in flight, whichever is later (vLLM's `--max-concurrency`).
Columns are read-only numpy arrays, so that a million requests are a few dozen objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import ConfigurationError, InputError
from simulator.workload.columns import DEFAULTS, NAMES, Categorical, categorical, floats, integers
from simulator.workload.content import OUTPUT_ID_BASE, Runs, gather_runs, rename_outputs

__all__ = ["Trace"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Columns of one workload; make one with `Trace.from_columns` or `read_trace`."""

    arrival_time: Floats
    """s from the start, float64[n], not decreasing; NaN for later turns that wait for the turn before."""
    input_length: Ints
    output_length: Ints
    """Tokens that the model will generate; a scheduler must not look at it."""
    max_tokens: Ints
    """The client's limit on the output; 0 where the trace does not state one."""
    priority: Ints
    n: Ints
    """Samples asked for (parallel sampling)."""
    session: Ints
    """Conversation, −1 for none."""
    turn: Ints
    """Position within the session, from 0."""
    delay: Floats
    """s between the completion of the turn before and this request."""
    model: Categorical
    tenant: Categorical
    slo_class: Categorical
    lora: Categorical
    request_id: list[str] | None
    content_offsets: Ints
    content_ids: Ints
    content_tokens: Ints
    max_concurrency: int | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where it comes from: format, path, unit, block size, rows read, rows dropped by reason, inversions,
    quantum."""

    @classmethod
    def from_columns(
        cls,
        arrival_time: ArrayLike,
        input_length: ArrayLike,
        output_length: ArrayLike,
        *,
        content: Runs | None = None,
        request_id: Sequence[str] | None = None,
        delay: ArrayLike | None = None,
        max_concurrency: int | None = None,
        meta: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> Trace:
        """A trace of n requests from array-likes, defaults for what is not given, stably sorted by arrival.

        `columns` may hold max_tokens, priority, n, session, turn (integers) and model, tenant, slo_class,
        lora (`Categorical`, or a sequence of names or None). Raises `InputError` for the first value out of
        bounds.
        """
        n = len(np.atleast_1d(np.asarray(input_length)))
        if n == 0:
            raise InputError("trace", "must hold at least one request")
        known = {"input_length": input_length, "output_length": output_length, **columns}
        filled = _filled(n, arrival_time, delay, known)
        content = Runs.empty(n) if content is None else content
        _check_content(content, filled["input_length"])
        trace = cls(
            **filled,
            request_id=_own_names(request_id, n),
            content_offsets=content.offsets,
            content_ids=content.ids,
            content_tokens=content.tokens,
            max_concurrency=max_concurrency,
            meta=dict(meta or {}),
        )
        _check_sessions(trace)
        return trace.with_meta(inversions=trace.inversions()).in_arrival_order()

    def __post_init__(self) -> None:
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency {self.max_concurrency}: must be at least 1")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            array = value.codes if isinstance(value, Categorical) else value
            if isinstance(array, np.ndarray):
                array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.input_length)

    def __repr__(self) -> str:
        return (
            f"<Trace of {len(self)} requests, {self.duration:.1f} s, {self.meta.get('format', 'in memory')}>"
        )

    @property
    def duration(self) -> float:
        """s from the start to the last arrival that is known."""
        known = self.arrival_time[~np.isnan(self.arrival_time)]
        return float(known[-1]) if len(known) else 0.0

    @property
    def request_rate(self) -> float:
        """Mean arrivals per second, gaps over the time they span; infinite when all arrive at once."""
        known = self.arrival_time[~np.isnan(self.arrival_time)]
        span = float(known[-1] - known[0]) if len(known) else 0.0
        return (len(known) - 1) / span if span > 0 else float("inf")

    @property
    def content(self) -> Runs:
        """The runs of all prompts."""
        return Runs(self.content_offsets, self.content_ids, self.content_tokens)

    def name(self, index: int) -> str:
        """The request's id, ``r<index>`` where the trace has none."""
        return f"r{index}" if self.request_id is None else self.request_id[index]

    def names(self) -> Iterator[str]:
        """All request ids, in order."""
        return (self.name(i) for i in range(len(self)))

    def previous_turn(self) -> Ints:
        """Index of the session's turn before each request, −1 for a first turn or no session. int64[n]."""
        previous = np.full(len(self), -1, np.int64)
        if int(self.session.max()) < 0:
            return previous
        order = np.lexsort((self.turn, self.session))
        ordered = self.session[order]
        follows = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
        previous[order[1:][follows]] = order[:-1][follows]
        return previous

    def replace(self, **changes: Any) -> Trace:
        """A copy with some columns replaced, unchecked."""
        return dataclasses.replace(self, **changes)

    def with_meta(self, **entries: Any) -> Trace:
        """A copy whose `meta` has *entries* added."""
        return self.replace(meta={**self.meta, **entries})

    def select(self, indices: ArrayLike) -> Trace:
        """The requests at *indices* (or where a boolean mask is true), in that order.

        A prompt that names the output of a request left behind keeps a content id of its own for it.
        """
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) == 0:
            raise InputError(
                self.meta.get("path", "trace"), "must hold at least one request: the selection is empty"
            )
        runs = gather_runs(self.content, self.content_offsets[:-1][chosen], self.content_offsets[1:][chosen])
        changes: dict[str, Any] = {
            name: getattr(self, name)[chosen]
            for name in ("arrival_time", "input_length", "output_length", "delay", *DEFAULTS)
        }
        for name in NAMES:
            column = getattr(self, name)
            changes[name] = Categorical(column.codes[chosen], column.names)
        if self.request_id is not None:
            changes["request_id"] = [self.request_id[i] for i in chosen]
        changes["content_offsets"], changes["content_tokens"] = runs.offsets, runs.tokens
        changes["content_ids"] = rename_outputs(runs.ids, chosen, len(self))
        return self.replace(**changes)

    slice = select

    def limit(self, n: int) -> Trace:
        """The first *n* requests."""
        if n < 1:
            raise ConfigurationError(f"{n} requests: must be at least 1")
        return self if n >= len(self) else self.select(np.arange(n))

    def window(self, start_s: float, end_s: float) -> Trace:
        """The requests that arrive in [start_s, end_s), with start_s as the new time 0.

        A later turn without an arrival time goes with the last turn of its session that has one.
        """
        key = self._arrival_keys()
        inside = (key >= start_s) & (key < end_s)
        if not inside.any():
            raise ConfigurationError(
                f"window {start_s}:{end_s} s: holds no request, the trace ends at {self.duration} s"
            )
        chosen = self.select(inside)
        return chosen.replace(arrival_time=chosen.arrival_time - start_s)

    def scaled(self, time_scale: float) -> Trace:
        """All gaps and delays multiplied by *time_scale* (0.5: twice the load)."""
        if not 0 <= time_scale < float("inf"):
            raise ConfigurationError(f"time scale {time_scale}: must be at least 0 and finite")
        return self.replace(arrival_time=self.arrival_time * time_scale, delay=self.delay * time_scale)

    def with_request_rate(self, rate: float) -> Trace:
        """Arrivals stretched to a mean of *rate* requests per second; infinite: all at once. Delays stay."""
        if not rate > 0:
            raise ConfigurationError(f"request rate {rate}: must be above 0")
        now = self.request_rate
        if now == float("inf") and rate < float("inf"):
            raise ConfigurationError(
                "request rate: all requests arrive at once, there are no gaps to stretch"
            )
        return self.replace(arrival_time=self.arrival_time * (now / rate if rate < float("inf") else 0.0))

    def with_max_concurrency(self, limit: int | None) -> Trace:
        """The same with at most *limit* requests in flight."""
        return self.replace(max_concurrency=limit)

    def with_samples(self, n: int) -> Trace:
        """The same with *n* outputs of every request."""
        if n < 1:
            raise ConfigurationError(f"samples {n}: must be at least 1")
        return self.replace(n=np.full(len(self), n))

    def with_adapters(self, count: int, seed: int = 0) -> Trace:
        """The same with one of *count* LoRA adapters, evenly drawn, for every session or single request."""
        if count < 1:
            raise ConfigurationError(f"num_adapters {count}: must be at least 1")
        groups = np.where(self.session < 0, -1 - np.arange(len(self)), self.session)
        _, group = np.unique(groups, return_inverse=True)
        drawn = np.random.default_rng(seed).integers(0, count, len(self))[group]
        return self.replace(lora=Categorical.of([f"adapter-{i}" for i in drawn.tolist()]))

    def to_jsonl(self, path: str | Path) -> None:
        """Write the canonical JSONL (see `simulator.workload.export`)."""
        from simulator.workload.export import write_jsonl

        write_jsonl(self, path)

    def _arrival_keys(self) -> Floats:
        """Arrival, or for a turn without one that of the last turn before it that has one."""
        missing = np.isnan(self.arrival_time)
        if not missing.any():
            return self.arrival_time
        order = np.lexsort((self.turn, self.session))
        known = np.where(missing[order], -1, np.arange(len(self)))
        key = np.empty(len(self))
        key[order] = self.arrival_time[order][np.maximum.accumulate(known)]
        return key

    def inversions(self) -> int:
        """How often an arrival is earlier than the one before it."""
        return int(np.count_nonzero(np.diff(self.arrival_time[~np.isnan(self.arrival_time)]) < 0))

    def in_arrival_order(self) -> Trace:
        """Sorted by arrival, equal ones as they were; a turn without arrival follows its session's last."""
        order = np.argsort(self._arrival_keys(), kind="stable")
        return self if np.array_equal(order, np.arange(len(self))) else self.select(order)


def _filled(
    n: int, arrival_time: ArrayLike, delay: ArrayLike | None, known: dict[str, Any]
) -> dict[str, Any]:
    """All columns but content and ids, checked, with defaults for those that are not *known*."""
    filled: dict[str, Any] = {
        "arrival_time": floats("arrival_time", arrival_time, n),
        "delay": floats("delay", np.zeros(n) if delay is None else delay, n),
    }
    for name in ("input_length", "output_length", *DEFAULTS):
        filled[name] = integers(name, known.pop(name, np.full(n, DEFAULTS.get(name, 0))), n)
    for name in NAMES:
        filled[name] = categorical(name, known.pop(name, None), n)
    if known:
        raise TypeError(f"unknown columns: {', '.join(known)}")
    return filled


def _own_names(request_id: Sequence[str] | None, n: int) -> list[str] | None:
    """The ids as a list, or None where they are what a trace without ids would have."""
    if request_id is None:
        return None
    ids = list(request_id)
    if len(ids) != n:
        raise TypeError(f"request_id: must have {n} entries, got {len(ids)}")
    return None if ids == [f"r{i}" for i in range(n)] else ids


def _check_content(content: Runs, input_length: Ints) -> None:
    if len(content.ids) and int(content.ids.max()) >= OUTPUT_ID_BASE + len(input_length):
        raise InputError("trace", "names the output of a request that does not exist", field="content")
    total = np.concatenate(([0], np.cumsum(content.tokens)))[content.offsets]
    excess = np.diff(total) > input_length
    if excess.any():
        where = int(excess.argmax())
        tokens, length = int(np.diff(total)[where]), int(input_length[where])
        raise InputError(
            "trace", f"must be at most input_length {length}", field=f"content[{where}]", value=tokens
        )


def _check_sessions(trace: Trace) -> None:
    """A request without an arrival time must be the later turn of a session that starts at a time."""
    missing = np.isnan(trace.arrival_time)
    orphan = missing & (trace.previous_turn() < 0)
    if orphan.any():
        where = int(orphan.argmax())
        raise InputError(
            "trace", "only a later turn of a session may lack it", field=f"arrival_time[{where}]", value=None
        )
