"""Mooncake traces (FAST'25 release): JSONL with exactly timestamp (ms), input_length, output_length,
hash_ids.

The hash ids are those of 512-token blocks and chained: an id stands for its block and everything before it.
The conversation trace's clock ticks every 3 s, ten requests at a time; ``spread="uniform"`` draws them apart.
Source: github.com/kvcache-ai/Mooncake, FAST25-release/README.md.
"""

from __future__ import annotations

from simulator.workload.formats import canonical
from simulator.workload.formats.base import Format
from simulator.workload.source import Head

__all__ = ["FORMAT"]

KEYS = {"timestamp", "input_length", "output_length", "hash_ids"}


def recognises(head: Head) -> bool:
    return head.kind == "jsonl" and set(head.names) == KEYS


FORMAT = Format("mooncake", "Mooncake JSONL (ms, 512-token blocks)", recognises, canonical.read)
