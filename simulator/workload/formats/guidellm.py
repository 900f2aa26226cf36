"""guidellm replay files: Mooncake's keys in seconds (512-token blocks), or Weka's t, in, out, hash_ids
(64-token blocks).

Mooncake's keys are read so only when asked for by name. Weka's ids are local to the conversation that `id`
names. Source: github.com/vllm-project/guidellm, dataset deserializers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from simulator.workload.formats import canonical
from simulator.workload.formats.base import Draft, Format, Options, block_runs, time_unit
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["FORMAT"]

WEKA_BLOCK_SIZE = 64


def recognises(head: Head) -> bool:
    return head.kind == "jsonl" and head.has("t", "in", "out")


def read(rows: Rows, options: Options) -> Draft:
    """Either kind, by its column names."""
    if not rows.has("in"):
        return canonical.read(rows, dataclasses.replace(options, time_unit=options.time_unit or "s"))
    size = WEKA_BLOCK_SIZE if options.block_size is None else options.block_size
    draft = Draft(
        rows.integers("in", least=1),
        rows.integers("out", least=0),
        time=rows.numbers("t"),
        unit=time_unit(rows, options, "s"),
        block_size=size,
    )
    content = block_runs(rows, "hash_ids", draft.input_length, size)
    if content is not None and rows.has("id"):
        conversation = np.repeat(rows.names("id").codes.astype(np.int64), np.diff(content.offsets))
        ids = np.unique(np.stack((conversation, content.ids)), axis=1, return_inverse=True)[1].reshape(-1)
        content = content._replace(ids=ids.astype(np.int64))
    draft.content = content
    return draft


FORMAT = Format("guidellm", "guidellm JSONL (s; Mooncake's or Weka's keys)", recognises, read)
