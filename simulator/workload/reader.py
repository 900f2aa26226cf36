"""`read_trace`: a file of any supported format as a `Trace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError, InputError
from simulator.workload.arrivals import poisson_arrivals
from simulator.workload.columns import Categorical
from simulator.workload.content import Blocks, Runs, gather_runs, rename_outputs
from simulator.workload.formats import Draft, Format, Options, find_format
from simulator.workload.formats.base import TIME_UNITS
from simulator.workload.merging import compile_blocks, compile_runs
from simulator.workload.rows import Rows
from simulator.workload.sessions import accumulate_sessions
from simulator.workload.source import Source
from simulator.workload.spread import spread_uniform
from simulator.workload.trace import Trace

__all__ = ["read_trace"]

MAX_SPAN = 1e10
"""Longest trace accepted, s (300 years): beyond it a clock was misread."""


def read_trace(
    path: str | Path,
    *,
    format: str | None = None,
    time_unit: str | None = None,
    block_size: int | None = None,
    spread: str = "none",
    zero_output: str | None = None,
    session_context: str | None = None,
    characters_per_token: float | None = None,
    columns: Mapping[str, str] | None = None,
    window: tuple[float, float] | None = None,
    limit: int | None = None,
    time_scale: float | None = None,
    request_rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """Read *path*, plain or gzip.

    Parameters
    ----------
    format: name of an importer (`FORMATS`); recognised by the header or the first record if None
    time_unit: 's', 'ms', 'us' or 'ns', where the format does not define it or the file departs from it
    block_size: tokens per block of the file's hash ids
    spread: 'uniform' draws requests that share a tick of a coarse clock apart, at random within the tick
    zero_output: 'drop' or 'keep' (as one token) requests of which no output is recorded
    session_context: whether a later turn's length is the 'full' prompt or the 'delta' to its session
    characters_per_token: rule for files that hold text instead of lengths
    columns: canonical name to the file's own column name
    window, limit: only what arrives within [start, end) s, only the first so many
    time_scale: factor of all gaps and delays
    request_rate: mean requests per second of what is left: stretches the arrivals of the file, or is the rate
    of
        Poisson arrivals for a file without times; infinite: all at once
    seed: of `spread` and of such arrivals

    Raises `InputError` (file:line: field: value: what is allowed), `ConfigurationError` or
    `UnknownNameError`.
    """
    _check_choice("spread", spread, ("none", "uniform"))
    _check_choice("zero_output", zero_output, (None, "drop", "keep"))
    _check_choice("session_context", session_context, (None, "full", "delta"))
    source = Source(path, columns)
    importer = find_format(source, format)
    options = Options(time_unit, block_size, characters_per_token)
    rows = Rows.of(source)
    draft = importer.read(rows, options)
    if session_context is not None:
        draft.accumulates = session_context == "delta"
    _settle_zero_outputs(rows, draft, importer, zero_output)
    timed = draft.time is not None and not bool(np.isnan(draft.time).all())
    if not timed and request_rate is None:
        raise InputError(path, "has no arrival times: say --request-rate (inf: all at once)")
    if timed and draft.time is not None:
        _check_times(rows, draft, draft.time)
    generator = np.random.default_rng(seed)
    trace = _assemble(rows, draft, importer)
    if not timed and request_rate is not None:
        trace = _with_poisson_starts(trace, request_rate, generator)
    if spread == "uniform":
        trace = spread_uniform(trace, generator)
    return _cut_and_stretched(trace, window, limit, time_scale, request_rate if timed else None)


def _cut_and_stretched(
    trace: Trace,
    window: tuple[float, float] | None,
    limit: int | None,
    time_scale: float | None,
    request_rate: float | None,
) -> Trace:
    """The part that is asked for at the pace that is asked for, with what was done in `meta`."""
    if window is not None:
        trace = trace.window(*window).with_meta(window_s=[str(bound) for bound in window])
    if limit is not None:
        trace = trace.limit(limit).with_meta(limit=limit)
    if time_scale is not None:
        trace = trace.scaled(time_scale).with_meta(time_scale=time_scale)
    if request_rate is not None:
        trace = trace.with_request_rate(request_rate).with_meta(request_rate=str(request_rate))
    return trace


def _check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        names = ", ".join(choice for choice in allowed if choice is not None)
        raise ConfigurationError(f"{name.replace('_', ' ')} {value!r}: must be one of {names}")


def _settle_zero_outputs(rows: Rows, draft: Draft, importer: Format, choice: str | None) -> None:
    """Requests without output: an error, dropped with a count, or kept as one token."""
    zero = draft.output_length == 0
    if draft.keep is not None:
        zero &= draft.keep
    if not zero.any():
        return
    choice = choice or importer.zero_output
    if choice is None:
        row = int(zero.argmax())
        raise rows.error(row, "output_length", 0, "must be at least 1: say --zero-output drop or keep")
    if choice == "keep":
        draft.output_length = np.maximum(draft.output_length, 1)
        draft.meta["zero_outputs_kept_as_one_token"] = int(zero.sum())
        return
    draft.keep = ~zero if draft.keep is None else draft.keep & ~zero
    draft.dropped["zero_output"] = int(zero.sum())


def _check_times(rows: Rows, draft: Draft, time: NDArray[Any]) -> None:
    """Only a later turn of a session may lack an arrival time."""
    missing = np.isnan(time)
    if "session" in draft.columns:
        session, turn = draft.columns["session"], draft.columns["turn"]
        order = np.lexsort((turn, session))
        later = (session[order][1:] == session[order][:-1]) & (session[order][1:] >= 0)
        missing[order[1:][later]] = False
    if missing.any():
        row = int(missing.argmax())
        raise rows.error(row, "timestamp", None, "only a later turn of a session may do without")


def _assemble(rows: Rows, draft: Draft, importer: Format) -> Trace:
    """The draft as a trace: rows dropped, seconds from the start, sessions accumulated, content compiled."""
    draft = _kept(rows, draft)
    if draft.accumulates and "session" in draft.columns:
        accumulate_sessions(rows, draft)
    ticks = TIME_UNITS[draft.unit]
    meta = {
        "format": importer.name,
        "path": str(rows.path),
        "time_unit": draft.unit if draft.time is not None else None,
        "block_size": draft.block_size if draft.content is not None else None,
        "rows_read": rows.count,
        "rows_dropped": draft.dropped,
        **draft.meta,
    }
    return Trace.from_columns(
        _arrivals(rows, draft, ticks),
        draft.input_length,
        draft.output_length,
        content=_compiled(draft.content),
        delay=None if draft.delay is None else draft.delay / ticks,
        meta=meta,
        **draft.columns,
    )


def _kept(rows: Rows, draft: Draft) -> Draft:
    """The draft without the rows it does not keep."""
    if draft.keep is None or draft.keep.all():
        return draft
    chosen = np.flatnonzero(draft.keep)
    if len(chosen) == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in draft.dropped.items())
        raise InputError(rows.path, f"all {rows.count} rows are dropped ({reasons})")
    content = draft.content.runs() if isinstance(draft.content, Blocks) else draft.content
    if content is not None:
        content = gather_runs(content, content.offsets[:-1][chosen], content.offsets[1:][chosen])
        content = content._replace(ids=rename_outputs(content.ids, chosen, rows.count))
    return dataclasses.replace(
        draft,
        input_length=draft.input_length[chosen],
        output_length=draft.output_length[chosen],
        time=None if draft.time is None else draft.time[chosen],
        delay=None if draft.delay is None else draft.delay[chosen],
        content=content,
        columns={name: _entries(column, chosen) for name, column in draft.columns.items()},
    )


def _compiled(content: Runs | Blocks | None) -> Runs | None:
    if content is None:
        return None
    return compile_blocks(content) if isinstance(content, Blocks) else compile_runs(content)


def _entries(column: Any, chosen: NDArray[np.int64]) -> Any:
    if isinstance(column, Categorical):
        return Categorical(column.codes[chosen], column.names)
    return column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]


def _arrivals(rows: Rows, draft: Draft, ticks: int) -> NDArray[np.float64]:
    """Seconds from the first arrival; without any time, 0 for all but later turns of sessions."""
    if draft.time is not None and not bool(np.isnan(draft.time).all()):
        return _seconds(rows, draft.time, ticks)
    arrival = np.zeros(len(draft.input_length))
    if "session" in draft.columns:
        arrival[(draft.columns["session"] >= 0) & (draft.columns["turn"] > 0)] = np.nan
    return arrival


def _with_poisson_starts(trace: Trace, rate: float, generator: np.random.Generator) -> Trace:
    """Poisson arrivals for requests, or sessions, that the file gives no time."""
    arrival = trace.arrival_time.copy()
    starts = ~np.isnan(arrival)
    arrival[starts] = poisson_arrivals(int(starts.sum()), rate, generator)
    meta = {**trace.meta, "arrivals": f"Poisson, {rate:g} per s" if np.isfinite(rate) else "all at once"}
    return trace.replace(arrival_time=arrival, meta=meta).in_arrival_order()


def _seconds(rows: Rows, time: NDArray[Any], ticks: int) -> NDArray[np.float64]:
    """Seconds from the first arrival; whole ticks are subtracted before they are divided, so none is lost."""
    if bool(np.isnan(time).all()):
        raise InputError(
            rows.path, "no request has an arrival time: at least a session's first turn needs one"
        )
    seconds: NDArray[np.float64] = (time - np.nanmin(time)) / ticks
    if not bool(np.nanmax(seconds) < MAX_SPAN):
        row = int(np.nanargmax(time))
        raise InputError(
            rows.path,
            f"arrivals must lie within {MAX_SPAN:g} s of each other",
            field="timestamp",
            value=time[row].item(),
        )
    return seconds
