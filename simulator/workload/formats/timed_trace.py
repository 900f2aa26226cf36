"""vLLM's `--dataset-name timed_trace`: Mooncake's keys with vLLM's own defaults, seconds and 16-token blocks.

Nothing in a file tells it from Mooncake's, so it is read so only when asked for. Source: vLLM 0.33,
vllm/benchmarks.
"""

from __future__ import annotations

import dataclasses

from simulator.workload.formats import canonical
from simulator.workload.formats.base import Draft, Format, Options
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]


def recognises(head: Head) -> bool:
    return False


def read(rows: Rows, options: Options) -> Draft:
    """As canonical, with other units."""
    unit, block_size = options.time_unit or "s", 16 if options.block_size is None else options.block_size
    return canonical.read(rows, dataclasses.replace(options, time_unit=unit, block_size=block_size))


FORMAT = Format("timed-trace", "vLLM timed_trace JSONL (s, 16-token blocks)", recognises, read)
