"""NVIDIA aiperf's mooncake_trace with sessions: rows of one session_id are the turns of a conversation, in
file order.

A first turn has a `timestamp` (ms) or none; a later one a `delay` (ms after the turn before is answered) or
a timestamp. aiperf keeps the conversation and sends it whole, so a turn's `input_length` and `hash_ids`
(512-token blocks, not chained) are only what it adds. Rows may hold `text_input` instead of a length. What
tells these files from canonical ones is `session_id` without `turn`. Source: github.com/ai-dynamo/aiperf,
docs and dataset loader.
"""

from __future__ import annotations

from simulator.workload.formats import canonical
from simulator.workload.formats.base import Draft, Format, Options, text_lengths
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    if head.kind != "jsonl" or head.has("turn"):
        return False
    return (head.has("session_id") and head.has("input_length")) or head.has("text_input")


def read(rows: Rows, options: Options) -> Draft:
    """As canonical, with lengths of texts where there are no lengths."""
    if rows.has("text_input") and not rows.has("input_length"):
        rows.columns["input_length"] = text_lengths(rows, "text_input", rows.objects("text_input"), options)
    return canonical.read(rows, options)


FORMAT = Format("aiperf", "aiperf JSONL with sessions (ms, delays, turns that add up)", recognises, read)
