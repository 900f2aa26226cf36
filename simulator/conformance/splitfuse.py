"""Cases recorded from DeepSpeed-MII (``mii-0.3.3-*``): one row per call of its ``generate``.

A call flushes, runs the batch that the call before planned, and plans the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.splitfuse import SplitFuse

__all__ = ["replay"]

OPTIONS = (
    "max_ragged_batch_size",
    "max_ragged_sequence_count",
    "max_tracked_sequences",
    "kv_block_size",
    "num_blocks",
    "max_length",
)


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, a call at a time."""
    scheduler = SplitFuse(**{name: case.config[name] for name in OPTIONS}, explicit=True)
    outputs = {r["id"]: r["output_len"] for r in case.requests}
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    planned: Batch | None = None
    for theirs in case.steps:
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            scheduler.add(arrivals.pop()[1], theirs["step"])
        ours = _run(scheduler, planned, outputs, theirs["step"])
        planned = scheduler.plan()
        yield ours | _planned(scheduler, planned), {**EMPTY, **theirs}


def _request(index: int, r: dict[str, Any]) -> Request:
    return Request(r["id"], r["prompt_len"], r["output_len"], index=index)


def _run(scheduler: SplitFuse, batch: Batch | None, outputs: dict[str, int], step: int) -> dict[str, Any]:
    """The first part of a call: flush, and run what was planned."""
    ours: dict[str, Any] = {**EMPTY, "step": step, "scheduled": {}}
    ours["flushed"] = [request.id for request in scheduler.flush()]
    if batch is not None:
        joining = set(batch.joining)
        rows = [*(batch.decodes or ()), *batch.joining]
        ended = [r for r in rows if scheduler.decoding.generated(r) == outputs[r.id]]
        scheduler.commit(batch, ended, step)
        ours["scheduled"] = {request.id: tokens for request, tokens in batch.rows()}
        ours["prefill"] = [request.id for request, _, _ in batch.prefills]
        ours["no_token"] = [request.id for request, _, _ in batch.prefills if request not in joining]
        ours["finished"] = [request.id for request in ended]
    return ours | {"tracked": scheduler.tracked, "free_blocks": scheduler.free}


def _planned(scheduler: SplitFuse, batch: Batch | None) -> dict[str, Any]:
    """The second part: requests left in the buffer, and who was reset."""
    if batch is None:
        return {"buffer": len(scheduler.prompts) + len(scheduler.decoding)}
    decoding = len(scheduler.decoding) - len(batch.joining) - batch.num_decodes
    return {
        "buffer": len(scheduler.prompts) + decoding,
        "reset": [request.id for request in batch.preempted],
    }


EMPTY: dict[str, Any] = {
    "prefill": [],
    "no_token": [],
    "flushed": [],
    "finished": [],
    "reset": [],
}
"""Fields that a recorded row leaves out."""
