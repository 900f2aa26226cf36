"""BurstGPT: CSV of a campus's ChatGPT and GPT-4 use, 6 columns (v1, v2) or 8 (v3, two inserted in the
middle), by name.

Timestamp is in s from the first day's midnight, whole in v1. A request with 0 response tokens failed at the
source and is dropped (with a count) unless told otherwise; one with 0 request tokens cannot be replayed.
Session ID is empty for API calls. Source: github.com/HPMLL/BurstGPT.
"""

from __future__ import annotations

from simulator.workload.formats.base import Draft, Format, Options, time_unit
from simulator.workload.formats.canonical import turns_by_time
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return head.kind == "csv" and head.has("Timestamp", "Request tokens", "Response tokens")


def read(rows: Rows, options: Options) -> Draft:
    """Arrivals, lengths, models and, in v3, sessions (at their recorded times)."""
    prompt = rows.integers("Request tokens", least=0)
    time = rows.numbers("Timestamp")
    draft = Draft(prompt.clip(1), rows.integers("Response tokens", least=0), time=time)
    draft.unit = time_unit(rows, options, "s")
    if (prompt == 0).any():
        draft.keep = prompt > 0
        draft.dropped["zero_input"] = int((prompt == 0).sum())
    draft.columns["model"] = rows.names("Model")
    if rows.has("Session ID"):
        draft.columns["session"] = rows.names("Session ID").codes.astype("int64")
        draft.columns["turn"] = turns_by_time(draft.columns["session"], time)
    return draft


FORMAT = Format("burstgpt", "BurstGPT v1 to v3 (CSV, s)", recognises, read, zero_output="drop")
