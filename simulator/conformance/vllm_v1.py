"""Cases recorded from vLLM's V1 scheduler (``vllm-0.33.0-*``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v1 import V1_RULES, VllmV1

__all__ = ["replay"]


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, an iteration at a time."""
    scheduler = _scheduler(case)
    outputs = {r["id"]: r["output_len"] for r in case.requests}
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    for theirs in case.steps:
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            scheduler.add(arrivals.pop()[1], theirs["step"])
        yield _step(scheduler, outputs, theirs["step"]), _expected(theirs)


def _scheduler(case: Case) -> VllmV1:
    config = case.config
    return VllmV1(
        num_gpu_blocks=config["num_blocks"] - 1,  # block 0 is the null block
        block_size=config["block_size"],
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        enable_prefix_caching=config["enable_prefix_caching"],
        policy=config.get("policy", "fcfs"),
        long_prefill_token_threshold=config.get("long_prefill_token_threshold", 0),
        rules=V1_RULES["0.11" if case.source.startswith("vllm-0.11") else "0.33"],
        explicit=True,
    )


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len", 0), r["prompt_len"])
    return Request(
        r["id"],
        r["prompt_len"],
        r["output_len"],
        index=index,
        arrival_time=r["arrival_time"],
        priority=r.get("priority", 0),
        content=((r["prefix_id"], prefix),) if prefix else (),
    )


def _step(scheduler: VllmV1, outputs: dict[str, int], step: int) -> dict[str, Any]:
    batch = scheduler.schedule(step)
    ours: dict[str, Any] = {"step": step, "scheduled": {}, "new_cached": {}, "preempted": [], "finished": []}
    if batch is not None:
        ours["scheduled"] = {request.id: tokens for request, tokens in batch.rows()}
        ours["new_cached"] = {request.id: tokens for request, tokens in batch.cached.items()}
        ours["preempted"] = sorted(request.id for request in batch.preempted)
        ended = [
            r for r in (*(batch.decodes or ()), *batch.joining) if _generated(scheduler, r) == outputs[r.id]
        ]
        scheduler.commit(batch, ended, step)
        ours["finished"] = sorted(request.id for request in ended)
    ours["running"] = scheduler.num_running
    ours["waiting"] = scheduler.num_waiting
    ours["kv_usage"] = round(scheduler.blocks.usage, 6)
    return ours


def _generated(scheduler: VllmV1, request: Request) -> int:
    return scheduler.decoding.generated(request)


def _expected(theirs: dict[str, Any]) -> dict[str, Any]:
    return {name: theirs[name] for name in COMPARED if name in theirs}


COMPARED = ("step", "scheduled", "new_cached", "preempted", "finished", "running", "waiting", "kv_usage")
