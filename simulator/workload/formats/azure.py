"""Azure LLM inference traces 2023, 2024 and 2025: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

Columns go by name (2025 has NumImages between). Time stamps have up to seven fractional digits (.NET ticks)
and, in some files, a zone. Source: github.com/Azure/AzurePublicDataset.
"""

from __future__ import annotations

from simulator.workload.formats.base import Draft, Format, Options
from simulator.workload.formats.clock import read_times
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return head.kind == "csv" and head.has("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(rows: Rows, options: Options) -> Draft:
    """Arrival times and lengths; nothing is known of sessions or content."""
    return Draft(
        rows.integers("ContextTokens", least=1),
        rows.integers("GeneratedTokens", least=0),
        time=read_times(rows, "TIMESTAMP"),
        unit="ns",
    )


FORMAT = Format("azure", "Azure LLM inference trace 2023/2024/2025 (CSV)", recognises, read)
