"""RAGPulse: JSONL of a university's question answering, prompts in five parts whose lengths are in tables
of their own.

`timestamp` is a string of whole seconds, `hash_ids` an object of id lists. The parts' lengths come from the
five files beside the trace (``*_sys_prompt.jsonl`` and so on). Their sum is 6 to 12 tokens short of
input_length: the template's tokens, which count as the request's own, after the parts. Source:
github.com/flashserve/RAGPulse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload.content import Runs
from simulator.workload.formats.base import Draft, Format, Options, time_unit
from simulator.workload.formats.canonical import turns_by_time
from simulator.workload.rows import Rows
from simulator.workload.source import Head, Source

__all__ = ["FORMAT"]

PARTS = {
    "sys_prompt": ("sys_prompt", "sys_prompt_id"),
    "passages_ids": ("passages", "passage_id"),
    "history": ("history", "history_id"),
    "web_search": ("web_search", "web_search_id"),
    "user_input": ("user_input", "user_input_id"),
}
"""Part of hash_ids, in prompt order: name of its table's file, name of the table's key."""

MAX_ID = 1 << 40


def recognises(head: Head) -> bool:
    return head.kind == "jsonl" and isinstance(head.record.get("hash_ids"), dict)


def read(rows: Rows, options: Options) -> Draft:
    """Sessions at their recorded times, content of the five parts."""
    time = rows.numbers("timestamp")
    draft = Draft(
        rows.integers("input_length", least=1),
        rows.integers("output_length", least=0),
        time=time,
        unit=time_unit(rows, options, "s"),
    )
    draft.content = content(rows).clipped(draft.input_length)
    if rows.has("session_id"):
        draft.columns["session"] = rows.names("session_id").codes.astype("int64")
        draft.columns["turn"] = turns_by_time(draft.columns["session"], time)
    return draft


def content(rows: Rows) -> Runs:
    """The parts one after the other, each id with its length."""
    split_parts(rows)
    parts = []
    for number, (part, (file, key)) in enumerate(PARTS.items()):
        offsets, ids = rows.lists(f"hash_ids.{part}")
        parts.append((offsets, ids * len(PARTS) + number, lengths_of(rows.path, file, key, ids)))
    row = np.concatenate([np.repeat(np.arange(rows.count), np.diff(offsets)) for offsets, _, _ in parts])
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=rows.count)
    return Runs(
        np.concatenate(([0], np.cumsum(counts))),
        np.concatenate([ids for _, ids, _ in parts])[order],
        np.concatenate([tokens for _, _, tokens in parts])[order],
    )


def split_parts(rows: Rows) -> None:
    """A column ``hash_ids.<part>`` for each part."""
    values = rows.objects("hash_ids")
    for row, value in enumerate(values):
        if not isinstance(value, dict):
            raise rows.error(row, "hash_ids", value, f"must be an object of {', '.join(PARTS)}")
    for part in PARTS:
        rows.columns[f"hash_ids.{part}"] = [value.get(part) for value in values]


def lengths_of(trace: Path, file: str, key: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of each id, from the table beside the trace."""
    if len(ids) == 0:
        return ids
    path = next(iter(sorted(trace.parent.glob(f"*{file}.jsonl"))), None)
    if path is None:
        raise InputError(
            trace, f"needs the part's lengths in a file *{file}.jsonl beside it", field="hash_ids"
        )
    table = Rows.of(Source(path))
    known, tokens = table.integers(key, least=0, most=MAX_ID), table.integers("token_length", least=0)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    absent = known[order][place] != ids
    if absent.any():
        raise InputError(trace, f"must be in {path.name}", field="hash_ids", value=int(ids[absent.argmax()]))
    lengths: NDArray[np.int64] = tokens[order][place]
    return lengths


FORMAT = Format("ragpulse", "RAGPulse JSONL (s, prompt parts with length tables)", recognises, read)
