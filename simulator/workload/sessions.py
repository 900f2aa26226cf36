"""Sessions whose turns state only what they add: the prompt of a turn is all turns before it, outputs
included.

aiperf's traces are of this kind: ``input_length`` of a later turn is the length of the new message, and the
client sends the whole conversation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload.columns import MAX_LENGTH
from simulator.workload.content import OUTPUT_ID_BASE, Blocks, Runs, gather_runs, offsets_of

if TYPE_CHECKING:
    from simulator.workload.formats import Draft
    from simulator.workload.rows import Rows

__all__ = ["accumulate_sessions", "accumulated"]

Ints = NDArray[np.int64]


def accumulate_sessions(rows: Rows, draft: Draft) -> None:
    """Turn the lengths and content of *draft* from what each turn adds into whole prompts."""
    session, turn = draft.columns["session"], draft.columns["turn"]
    content = draft.content.runs() if isinstance(draft.content, Blocks) else draft.content
    content = Runs.empty(len(session)) if content is None else content
    draft.input_length, draft.content = accumulated(
        session, turn, draft.input_length, draft.output_length, content
    )
    longest = int(draft.input_length.max())
    if longest > MAX_LENGTH:
        raise InputError(
            rows.path, f"a session's prompts must stay within {MAX_LENGTH} tokens", value=longest
        )


def accumulated(session: Ints, turn: Ints, new: Ints, output: Ints, content: Runs) -> tuple[Ints, Runs]:
    """Prompt lengths and runs of requests that add *new* tokens with *content* to their session, and *output*
    each.

    Requests without a session (−1) stay as they are. What *content* does not name of a turn's new tokens gets
    an id of its own, since later turns repeat it.
    """
    n = len(session)
    parts = _own_parts(new, output, content)
    key = np.where(session >= 0, session, -1 - np.arange(n))
    order = np.lexsort((turn, key))
    starts = parts.offsets[:-1][order], parts.offsets[1:][order]
    chained = gather_runs(parts, *starts)
    first = np.concatenate(([True], key[order][1:] != key[order][:-1]))
    head = np.maximum.accumulate(np.where(first, np.arange(n), 0))
    tokens = np.concatenate(([0], np.cumsum(chained.tokens)))
    begin, end = chained.offsets[:-1][head], chained.offsets[1:] - 1  # all but the turn's own output
    length, runs = np.empty(n, np.int64), gather_runs(chained, begin, end)
    length[order] = tokens[end] - tokens[begin]
    back = np.empty(n, np.int64)
    back[order] = np.arange(n)
    return length, gather_runs(runs, runs.offsets[:-1][back], runs.offsets[1:][back])


def _own_parts(new: Ints, output: Ints, content: Runs) -> Runs:
    """Per request: its content, one run for the rest of its new tokens, one run for its output."""
    n, counts = len(new), np.diff(content.offsets)
    row = np.repeat(np.arange(n), counts)
    named = np.bincount(row, weights=content.tokens, minlength=n).astype(np.int64)
    offsets = offsets_of(counts + 2)
    ids, tokens = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int64)
    entry = np.arange(len(row)) + 2 * row
    ids[entry], tokens[entry] = content.ids, content.tokens
    fresh = int(content.ids[content.ids < OUTPUT_ID_BASE].max(initial=-1)) + 1
    ids[offsets[1:] - 2], tokens[offsets[1:] - 2] = fresh + np.arange(n), new - named
    ids[offsets[1:] - 1], tokens[offsets[1:] - 1] = OUTPUT_ID_BASE + np.arange(n), output
    return Runs(offsets, ids, tokens)
