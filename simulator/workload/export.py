"""Writing the canonical JSONL: one request per line, keys without information left out.

`request_id` is always written, which also says that `timestamp` is in ms. Content goes out as `hash_ids`
where it came in as 512-token blocks and still fits them, so that other tools can read it, else as
`content_ids` and `content_tokens`, where the id −k names the output of the k-th line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload.content import OUTPUT_ID_BASE
from simulator.workload.merging import compile_runs
from simulator.workload.trace import Trace

__all__ = ["as_written", "write_jsonl", "write_meta"]


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DECIMALS = 4
"""Of a time in ms: Azure's ticks are tenths of a microsecond."""
TIE, LARGE = 1e-3, 2.0**40
"""How close to half a tick, and from how many ticks on, a product of doubles may fall on the wrong side."""


def write_jsonl(trace: Trace, path: str | Path) -> None:
    """Write *trace* to *path*, whole or not at all."""
    _write_lines(Path(path), (json.dumps(record, separators=(",", ":")) + "\n" for record in records(trace)))


def as_written(trace: Trace) -> Trace:
    """What reading the file of *trace* gives, without the file: times to the tenth of a microsecond from the
    first arrival, sessions numbered as they come, content ids of prompts that nobody shares merged.
    """
    arrival, content = _rounded(trace.arrival_time), compile_runs(trace.content)
    return trace.replace(
        arrival_time=(arrival - np.nanmin(arrival)) / 1000,
        delay=_rounded(trace.delay) / 1000,
        session=_numbered(trace.session),
        content_offsets=content.offsets,
        content_ids=content.ids,
        content_tokens=content.tokens,
    ).in_arrival_order()


def _rounded(seconds: Floats) -> Floats:
    """ms as they are written; NaN stays."""
    ms = seconds * 1000
    ticks = ms * 10**DECIMALS
    # A whole number over a power of ten is the very double that Python's round gives.
    rounded: Floats = np.rint(ticks) / 10**DECIMALS
    close = (np.abs(ticks - np.floor(ticks) - 0.5) < TIE) | (np.abs(ticks) > LARGE)
    rounded[close] = [round(t, DECIMALS) for t in ms[close].tolist()]
    return rounded


def _numbered(codes: Ints) -> Ints:
    """Codes from 0 in order of appearance; −1 stays."""
    known = codes >= 0
    _, first, inverse = np.unique(codes[known], return_index=True, return_inverse=True)
    numbered = np.full(len(codes), -1, np.int64)
    numbered[known] = np.argsort(np.argsort(first))[inverse]
    return numbered


def write_meta(trace: Trace, path: str | Path) -> None:
    """Write where *trace* comes from beside *path*, as ``<path>.meta.json``."""
    target = Path(path)
    _write_lines(
        target.with_name(f"{target.name}.meta.json"), [json.dumps(dict(trace.meta), indent=2) + "\n"]
    )


def _write_lines(target: Path, lines: Iterable[str]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(target, f"cannot be written: {error.strerror}") from error


def records(trace: Trace) -> Iterator[dict[str, Any]]:
    """One dict per request."""
    columns = {
        "timestamp": [milliseconds(t) for t in (trace.arrival_time * 1000).tolist()],
        "input_length": trace.input_length.tolist(),
        "output_length": trace.output_length.tolist(),
        **optional_keys(trace),
        "request_id": list(trace.names()),
    }
    names = list(columns)
    for values in zip(*columns.values()):
        yield {name: value for name, value in zip(names, values) if value is not None}


def milliseconds(value: float) -> float | int | None:
    """ms to `DECIMALS`, whole where it is whole, None for none."""
    if value != value:
        return None
    rounded = round(value, DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded


def optional_keys(trace: Trace) -> dict[str, list[Any]]:
    """Columns that differ from their defaults anywhere."""
    columns: dict[str, list[Any]] = {}
    for name, default in (("max_tokens", 0), ("priority", 0), ("n", 1)):
        values = getattr(trace, name)
        if (values != default).any():
            columns[name] = values.tolist()
    for name in ("model", "tenant", "slo_class", "lora"):
        if (getattr(trace, name).codes >= 0).any():
            columns[name] = list(getattr(trace, name))
    if (trace.session >= 0).any():
        columns["session_id"] = [None if s < 0 else f"s{s}" for s in trace.session.tolist()]
        columns["turn"] = [None if s < 0 else t for s, t in zip(trace.session.tolist(), trace.turn.tolist())]
    if trace.delay.any():
        columns["delay"] = [milliseconds(t) or None for t in (trace.delay * 1000).tolist()]
    elif np.isnan(trace.arrival_time).any():
        columns["delay"] = [0 if t != t else None for t in trace.arrival_time.tolist()]
    return columns | content_keys(trace)


def content_keys(trace: Trace) -> dict[str, list[Any]]:
    """`hash_ids`, or the runs."""
    if len(trace.content_ids) == 0:
        return {}
    blocks = block_ids(trace)
    if blocks is not None:
        return {"hash_ids": blocks}
    ids = np.where(
        trace.content_ids >= OUTPUT_ID_BASE, OUTPUT_ID_BASE - 1 - trace.content_ids, trace.content_ids
    )
    return {"content_ids": split(trace, ids), "content_tokens": split(trace, trace.content_tokens)}


def split(trace: Trace, values: Any) -> list[Any]:
    """CSR values as a list per request."""
    flat, offsets = values.tolist(), trace.content_offsets.tolist()
    return [flat[begin:end] for begin, end in pairwise(offsets)]


def block_ids(trace: Trace, block_size: int = 512) -> list[Any] | None:
    """The ids of each prompt's blocks, or None where runs do not begin and end on blocks.

    Block b of the run with id i is named by the run's place among all blocks of all runs, so ids are dense.
    """
    if trace.meta.get("block_size") != block_size or (trace.content_ids >= OUTPUT_ID_BASE).any():
        return None
    last = np.zeros(len(trace.content_ids), bool)
    last[trace.content_offsets[1:][np.diff(trace.content_offsets) > 0] - 1] = True
    if (trace.content_tokens[~last] % block_size).any():
        return None
    blocks = -(-trace.content_tokens // block_size)
    known = np.diff(np.concatenate(([0], np.cumsum(trace.content_tokens)))[trace.content_offsets])
    counts = np.diff(np.concatenate(([0], np.cumsum(blocks)))[trace.content_offsets])
    if (counts * (known > 0) < (known > 0) * (trace.input_length // block_size)).any():
        return None
    distinct, run = np.unique(trace.content_ids, return_inverse=True)
    longest = np.zeros(len(distinct), np.int64)
    np.maximum.at(longest, run, blocks)
    first = np.concatenate(([0], np.cumsum(longest)))[run]
    offsets = np.concatenate(([0], np.cumsum(blocks)))
    flat = (np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], blocks)).tolist()
    bounds = offsets[trace.content_offsets].tolist()
    return [flat[begin:end] for begin, end in pairwise(bounds)]
