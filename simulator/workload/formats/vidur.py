"""vidur and Sarathi-Serve CSV: arrived_at (s), num_prefill_tokens, num_decode_tokens; length files have no
arrived_at.

Source: github.com/microsoft/vidur and github.com/microsoft/sarathi-serve, data/processed_traces.
"""

from __future__ import annotations

from simulator.workload.formats.base import Draft, Format, Options, time_unit
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return head.kind == "csv" and head.has("num_prefill_tokens", "num_decode_tokens")


def read(rows: Rows, options: Options) -> Draft:
    """Lengths, with arrivals where the file has them."""
    return Draft(
        rows.integers("num_prefill_tokens", least=1),
        rows.integers("num_decode_tokens", least=0),
        time=rows.numbers("arrived_at") if rows.has("arrived_at") else None,
        unit=time_unit(rows, options, "s"),
    )


FORMAT = Format("vidur", "vidur / Sarathi-Serve CSV (s, or lengths only)", recognises, read)
