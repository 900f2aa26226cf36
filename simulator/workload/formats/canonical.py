"""The canonical JSONL: one request per line, the superset of Mooncake's and aiperf's keys.

`timestamp` (ms; or `delay` ms for a later turn), `input_length`, `output_length`, and optionally `hash_ids`
(blocks of 512 tokens unless said otherwise), `session_id`, `turn`, `request_id`, `model`, `tenant`,
`slo_class`, `priority`, `n`, `lora`, `max_tokens`, or instead of `hash_ids` the runs themselves as
`content_ids` and `content_tokens`, where the id −k names the output of the file's k-th request. Other keys
are ignored. Bare lines with fractional timestamps may as well be seconds (guidellm, vLLM's timed_trace) and
are refused until `--time-unit` says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.content import OUTPUT_ID_BASE, Runs
from simulator.workload.formats.base import Draft, Format, Options, block_runs, time_unit
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT", "optional_columns", "read", "turns_by_time"]

BLOCK_SIZE = 512
OWN_KEYS = ("request_id", "turn", "content_ids", "max_tokens", "tenant", "slo_class", "priority", "lora", "n")
"""Keys that only canonical files have: with one of them the unit is ms beyond doubt."""


def recognises(head: Head) -> bool:
    return (
        head.kind == "jsonl"
        and head.has("input_length")
        and (head.has("timestamp") or head.has("session_id"))
    )


def read(rows: Rows, options: Options) -> Draft:
    """All columns; lengths of later turns are whole prompts where the file numbers its turns."""
    draft = timed_lengths(rows)
    certain = any(rows.has(key) for key in OWN_KEYS) or draft.time is None or whole(draft.time)
    why = "fractional timestamps may be s or ms"
    draft.unit = time_unit(rows, options, "ms" if certain else None, why)
    draft.content = content_runs(rows, draft.input_length)
    if draft.content is None:
        draft.block_size = BLOCK_SIZE if options.block_size is None else options.block_size
        draft.content = block_runs(rows, "hash_ids", draft.input_length, draft.block_size)
    draft.columns = optional_columns(rows)
    draft.accumulates = rows.has("session_id") and not rows.has("turn")  # aiperf's sessions
    return draft


def timed_lengths(rows: Rows) -> Draft:
    """Lengths, timestamps and delays."""
    draft = Draft(
        rows.integers("input_length", least=1),
        rows.integers("output_length", least=0),
    )
    if rows.has("timestamp"):
        draft.time = rows.numbers("timestamp", default=np.nan if rows.has("delay") else None)
    if rows.has("delay"):
        draft.delay = rows.numbers("delay", least=0, default=0)
    return draft


def whole(values: NDArray[Any]) -> bool:
    """Whether all known values are whole numbers."""
    known = values[~np.isnan(values)]
    return bool((known == np.floor(known)).all())


def content_runs(rows: Rows, input_length: NDArray[np.int64]) -> Runs | None:
    """The runs written by `Trace.to_jsonl`."""
    if not rows.has("content_ids"):
        return None
    pairs = list(zip(rows.objects("content_ids"), rows.objects("content_tokens")))
    for row, (ids, tokens) in enumerate(pairs):
        check_runs(rows, row, ids, tokens, int(input_length[row]))
    named = np.array([name for ids, _ in pairs for name in ids or ()], np.int64)
    return Runs(
        np.concatenate(([0], np.cumsum([len(ids or ()) for ids, _ in pairs]))).astype(np.int64),
        np.where(named < 0, OUTPUT_ID_BASE - 1 - named, named),
        np.array([count for _, tokens in pairs for count in tokens or ()], np.int64),
    )


def check_runs(rows: Rows, row: int, ids: Any, tokens: Any, input_length: int) -> None:
    """As many ids as token counts, which fit the prompt."""
    check_list(rows, row, "content_ids", ids, -rows.count)
    check_list(rows, row, "content_tokens", tokens, 1)
    n = len(ids or ())
    if n != len(tokens or ()):
        raise rows.error(row, "content_tokens", tokens, f"must have {n} entries as content_ids has")
    if sum(tokens or ()) > input_length:
        raise rows.error(row, "content_tokens", tokens, f"must sum to at most input_length {input_length}")


def check_list(rows: Rows, row: int, name: str, values: Any, least: int) -> None:
    """A list of whole numbers within bounds, or nothing."""
    if values is None:
        return
    most = OUTPUT_ID_BASE - 1
    good = isinstance(values, list) and all(type(v) is int and least <= v <= most for v in values)
    if not good:
        raise rows.error(row, name, values, f"must be a list of whole numbers of at least {least}")


def optional_columns(rows: Rows) -> dict[str, Any]:
    """Columns that most files lack."""
    columns: dict[str, Any] = {}
    for name, least, default in (
        ("max_tokens", 0, 0),
        ("priority", -(1 << 31), 0),
        ("n", 1, 1),
        ("turn", 0, 0),
    ):
        if rows.has(name):
            columns[name] = rows.integers(name, least=least, default=default)
    for name in ("model", "tenant", "slo_class", "lora"):
        if rows.has(name):
            columns[name] = rows.names(name)
    if rows.has("request_id"):
        names = rows.texts("request_id")
        columns["request_id"] = [f"r{i}" if name is None else name for i, name in enumerate(names)]
    if rows.has("session_id"):
        columns["session"] = rows.names("session_id").codes.astype(np.int64)
        columns.setdefault("turn", turns_by_time(columns["session"], np.zeros(rows.count)))
    return columns


def turns_by_time(session: NDArray[np.int64], time: NDArray[Any]) -> NDArray[np.int64]:
    """Position of each row within its session in the order of *time*, from 0; equal times in file order."""
    order = np.lexsort((time, session))
    ordered = session[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    start = np.maximum.accumulate(np.where(first, np.arange(len(session)), 0))
    turns = np.zeros(len(session), np.int64)
    turns[order] = np.arange(len(session)) - start
    return np.where(session >= 0, turns, 0)


FORMAT = Format("canonical", "canonical JSONL (superset of Mooncake and aiperf)", recognises, read)
