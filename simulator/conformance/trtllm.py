"""Cases recorded from TensorRT-LLM's Python scheduler (``trtllm-5f480b7a-*``): one row per iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.trtllm import TensorRtLlm

__all__ = ["replay"]

OPTIONS = (
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "tokens_per_block",
    "num_blocks",
    "capacity_scheduler_policy",
    "enable_chunked_prefill",
    "context_chunking_policy",
    "chunk_unit_size",
    "enable_block_reuse",
    "two_step_lookahead",
)


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, an iteration at a time."""
    options = {name: case.config[name] for name in OPTIONS if case.config.get(name) is not None}
    scheduler = TensorRtLlm(**options, explicit=True)
    outputs = {r["id"]: r["output_len"] for r in case.requests}
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    for theirs in case.steps:
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            scheduler.add(arrivals.pop()[1], theirs["step"])
        yield _step(scheduler, outputs, theirs["step"]), theirs


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len", 0), r["prompt_len"])
    content = ((r["prefix_id"], prefix),) if prefix else ()
    return Request(r["id"], r["prompt_len"], r["output_len"], index=index, content=content)


def _step(scheduler: TensorRtLlm, outputs: dict[str, int], step: int) -> dict[str, Any]:
    batch = scheduler.schedule(step)
    ours = {"step": step} | _decided(batch)
    if batch is not None:
        assert isinstance(batch, Batch)
        rows = [*(batch.decodes or ()), *batch.joining]
        ended = [r for r in rows if scheduler.decoding.generated(r) == outputs[r.id]]
        scheduler.commit(batch, ended, step)
        ours["finished"] = [request.id for request in sorted(ended, key=lambda request: request.order)]
    return ours | {
        "running": scheduler.num_running,
        "waiting": scheduler.num_waiting,
        "queued": len(scheduler.queue),
        "free_blocks": scheduler.blocks.free,
    }


def _decided(batch: Any) -> dict[str, Any]:
    if batch is None:
        return {"scheduled": {}, "is_prefill": {}, "preempted": [], "new_cached": {}, "budgeted": {}}
    contexts = {request.id: tokens for request, tokens, _ in batch.prefills}
    decodes = [request.id for request in batch.decodes or ()]
    notes = batch.notes
    return {
        "scheduled": contexts | dict.fromkeys(decodes, 1),
        "is_prefill": dict.fromkeys(contexts, True) | dict.fromkeys(decodes, False),
        "preempted": [request.id for request in batch.preempted],
        "fitting": notes["fitting"],
        "new_cached": {request.id: tokens for request, tokens in batch.cached.items()},
        "budgeted": {r.id: tokens for r, tokens in notes["budgeted"].items()} | dict.fromkeys(decodes, 1),
    }
