"""splitwise-sim CSV: request_id, request_type (2: LLM), application_id, arrival_timestamp (s), batch_size,
prompt_size, token_size.

Source: github.com/Mutinifni/splitwise-sim, traces.
"""

from __future__ import annotations

from simulator.workload.formats.base import Draft, Format, Options, time_unit
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]

LLM = 2


def recognises(head: Head) -> bool:
    return head.kind == "csv" and head.has("arrival_timestamp", "prompt_size", "token_size")


def read(rows: Rows, options: Options) -> Draft:
    """LLM requests of one prompt each; applications become tenants."""
    draft = Draft(
        rows.integers("prompt_size", least=1),
        rows.integers("token_size", least=0),
        time=rows.numbers("arrival_timestamp"),
        unit=time_unit(rows, options, "s"),
    )
    rows.integers("batch_size", least=1, most=1, default=1)
    if rows.has("request_type"):
        other = rows.integers("request_type", least=0) != LLM
        draft.keep = ~other
        draft.dropped = {"not_an_llm_request": int(other.sum())} if other.any() else {}
    draft.columns["tenant"] = rows.names("application_id")
    return draft


FORMAT = Format("splitwise", "splitwise-sim CSV (s)", recognises, read)
