"""Cases recorded from LightLLM's router and backend (``lightllm-fc72ffab-*``): one row per iteration of the
loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.lightllm import Lightllm
from simulator.scheduling.request import Request

__all__ = ["replay"]


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, an iteration at a time."""
    scheduler = Lightllm(**case.config, explicit=True)
    outputs = {r["id"]: r["output_len"] for r in case.requests}
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    step = 0
    for theirs in case.steps:
        for _ in range(step, theirs["step"]):  # idle iterations are not listed
            scheduler.iterate(Batch())
        step = theirs["step"] + 1
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            scheduler.add(arrivals.pop()[1], theirs["step"])
        yield _step(scheduler, outputs, theirs["step"]), _unordered(theirs)


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len") or 0, r["prompt_len"])
    return Request(
        r["id"],
        r["prompt_len"],
        r["max_new_tokens"],
        index=index,
        content=((r["prefix_id"], prefix),) if prefix else (),
        ignore_eos=r.get("ignore_eos", False),
    )


def _step(scheduler: Lightllm, outputs: dict[str, int], step: int) -> dict[str, Any]:
    batch = Batch()
    scheduler.iterate(batch)
    rows = [*(batch.decodes or ()), *batch.joining]
    ended = [r for r in rows if scheduler.decoding.generated(r) == outputs[r.id]]
    scheduler.commit(batch, ended, step)
    pool, cache = scheduler.pool, scheduler.pool.cache
    return {
        "step": step,
        "scheduled": {request.id: tokens for request, tokens in batch.rows()},
        "prefill": sorted(r.id for r, chunk, context in batch.prefills if _is_prompt(r, chunk, context)),
        "new_cached": {request.id: tokens for request, tokens in batch.cached.items()},
        "finished": sorted(request.id for request in ended),
        "running": len(scheduler.running),
        "planned_waiting": len(scheduler.planned),
        "waiting": len(scheduler.waiting),
        "paused_now": len(scheduler.paused),
        "free_tokens": pool.free,
        "tree_tokens": cache.tokens if cache else 0,
        "refed_tokens": cache.protected if cache else 0,
        "paused": [],
        **{name: sorted(ids) for name, ids in (batch.notes or {}).items() if isinstance(ids, list)},
    }


def _is_prompt(request: Request, chunk: int, context: int) -> bool:
    """Whether the row is in the prefill forward: a request that lacks one token decodes."""
    return chunk > 1 or context + chunk < request.target


def _unordered(theirs: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, list) else value for name, value in theirs.items()}
