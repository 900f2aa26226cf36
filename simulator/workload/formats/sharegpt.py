"""ShareGPT: JSON array (or lines) of {"conversations": [{"from", "value"}, ...]}, text without times.

As vLLM's benchmark does, the first message is the prompt and the second the answer; conversations of fewer
are dropped. Lengths need a stated rule, `--characters-per-token`; the tokenizer's own lengths are in
Sarathi-Serve's CSV.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.workload.formats.base import Draft, Format, Options, text_lengths
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return head.kind in ("json", "jsonl") and head.has("conversations")


def read(rows: Rows, options: Options) -> Draft:
    """Lengths of the first two messages."""
    pairs = [first_two(rows, row, value) for row, value in enumerate(rows.objects("conversations"))]
    short = np.array([pair is None for pair in pairs])
    prompts, answers = ([None if pair is None else pair[k] for pair in pairs] for k in (0, 1))
    draft = Draft(
        np.array(text_lengths(rows, "conversations[0]", prompts, options, default=1), np.int64),
        np.array(text_lengths(rows, "conversations[1]", answers, options, default=1), np.int64),
    )
    if short.any():
        draft.keep, draft.dropped = ~short, {"fewer_than_two_turns": int(short.sum())}
    draft.meta["characters_per_token"] = options.characters_per_token
    return draft


def first_two(rows: Rows, row: int, value: Any) -> tuple[Any, Any] | None:
    """Text of the first two messages, or None if there are fewer."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise rows.error(row, "conversations", value, "must be a list of messages")
    return (value[0].get("value"), value[1].get("value")) if len(value) >= 2 else None


FORMAT = Format("sharegpt", "ShareGPT JSON (text; needs --characters-per-token)", recognises, read)
