"""Qwen-Bailian usage traces: JSONL with chat_id, parent_chat_id (−1 at the root), timestamp in s, 16-token
blocks.

Each row's prompt is the whole context, so turns do not add up, and a next turn's prompt is not exactly
prompt and output (special tokens are dropped): only the hash ids say what is shared. A chat whose parent is
not in the file starts a session of its own. Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.workload.formats.base import Draft, Format, Options, block_runs, time_unit
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]

BLOCK_SIZE = 16
CHAT_IDS = (-(1 << 53), 1 << 53)


def recognises(head: Head) -> bool:
    return head.kind == "jsonl" and head.has("chat_id", "parent_chat_id", "input_length")


def read(rows: Rows, options: Options) -> Draft:
    """Turns at their recorded times, sessions by the chat they descend from."""
    size = BLOCK_SIZE if options.block_size is None else options.block_size
    draft = Draft(
        rows.integers("input_length", least=1),
        rows.integers("output_length", least=0),
        time=rows.numbers("timestamp"),
        unit=time_unit(rows, options, "s"),
        block_size=size,
    )
    draft.content = block_runs(rows, "hash_ids", draft.input_length, size)
    root, depth, missing = descent(rows)
    draft.columns = {"session": root, "turn": depth}
    draft.meta["parents_not_in_file"] = missing
    return draft


def descent(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Row of each row's root, its number of ancestors, and how many parents are not in the file."""
    low, high = CHAT_IDS
    chat = rows.integers("chat_id", least=low, most=high)
    parent = rows.integers("parent_chat_id", least=low, most=high)
    known, first = np.unique(chat, return_index=True)
    place = np.minimum(np.searchsorted(known, parent), len(known) - 1)
    found = known[place] == parent
    above = np.where(found, first[place], np.arange(rows.count))
    depth = np.where(found, 1, 0)
    for _ in range(rows.count.bit_length() + 1):  # pointer doubling: each round looks twice as far up
        depth = depth + depth[above]
        above = above[above]
    if found[above].any():
        row = int(found[above].argmax())
        raise rows.error(row, "parent_chat_id", int(parent[row]), "must not descend from itself")
    return above, depth, int((~found & (parent >= 0)).sum())


FORMAT = Format("bailian", "Qwen-Bailian JSONL (s, 16-token blocks, parent chats)", recognises, read)
