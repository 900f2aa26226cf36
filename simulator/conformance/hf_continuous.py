"""Cases recorded from transformers' continuous batching (``hf-5.23.0-*``): one row per pass of its loop.

With asynchronous batching a pass launches a batch and then processes the results of the batch before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.hf_continuous import HfContinuous
from simulator.scheduling.request import RUNNING, SWAPPED, Request

__all__ = ["replay"]

OPTIONS = (
    "scheduler_type",
    "page_size",
    "num_blocks",
    "max_batch_tokens",
    "max_requests_per_batch",
    "max_blocks_per_request",
    "allow_block_sharing",
    "safety_margin",
    "use_async_batching",
    "num_cpu_blocks",
)


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, a pass at a time."""
    loop = _Loop(case)
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    for theirs in case.steps:
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            loop.scheduler.add(arrivals.pop()[1], theirs["step"])
        finished = sorted(theirs.get("finished", []))  # which are compared as a set
        yield loop.run(theirs["step"]), {**EMPTY, **theirs, "finished": finished}


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len", 0), r["prompt_len"])
    content = ((r["prefix_id"], prefix),) if prefix else ()
    return Request(r["id"], r["prompt_len"], r["output_len"], index=index, content=content)


class _Loop:
    def __init__(self, case: Case) -> None:
        self.scheduler = HfContinuous(**{name: case.config[name] for name in OPTIONS}, explicit=True)
        self.outputs = {r["id"]: r["output_len"] for r in case.requests}
        self.launched: list[tuple[Batch, list[Request]]] = []

    def run(self, step: int) -> dict[str, Any]:
        scheduler = self.scheduler
        batch = scheduler.schedule(step)
        assert batch is None or isinstance(batch, Batch)
        ours: dict[str, Any] = {**EMPTY, "step": step, "scheduled": {}}
        if batch is not None:
            ours |= self._decided(batch)
            self.launched.append((batch, self._last_tokens(batch)))
        finished = []
        while len(self.launched) > (0 if batch is None else scheduler.depth - 1):
            done, last = self.launched.pop(0)
            ended = [request for request in last if request.status is RUNNING]
            scheduler.commit(done, ended, step)
            finished += [request.id for request in ended]
        return ours | self._state() | {"finished": sorted(finished)}

    def _decided(self, batch: Batch) -> dict[str, Any]:
        rows = self._rows(batch)
        joining = set(batch.joining)
        notes: dict[str, Any] = batch.notes or {}
        return {
            "scheduled": {request.id: tokens for request, tokens, _ in rows},
            "prefill": [request.id for request, _, prompt in rows if prompt],
            "no_token": [request.id for request, _, _ in batch.prefills if request not in joining],
            "cached": {request.id: tokens for request, tokens in notes["found"].items()},
            "starved": [request.id for request in notes["starved"]],
            "reset": [request.id for request in batch.preempted if request.status is not SWAPPED],
            "offloaded": [request.id for request in batch.preempted if request.status is SWAPPED],
            "evicted": notes["evicted"],
            "tries": notes["tries"],
            "fast": notes["fast"],
        }

    def _rows(self, batch: Batch) -> list[tuple[Request, int, bool]]:
        """Request, tokens and whether they are of the prompt, in the order of the walk."""
        decodes = [(request, 1, False) for request in batch.decodes or ()]
        chunks = [
            (request, chunk, context < request.state.prompt) for request, chunk, context in batch.prefills
        ]
        return decodes + chunks

    def _last_tokens(self, batch: Batch) -> list[Request]:
        rows = [*batch.joining, *(batch.decodes or ())]
        return [r for r in rows if self.scheduler.decoding.generated(r) == self.outputs[r.id]]

    def _state(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "free_blocks": scheduler.blocks.free,
            "cached_blocks": scheduler.blocks.cached,
            "blocked": scheduler.closed,
        }


EMPTY: dict[str, Any] = {
    "prefill": [],
    "no_token": [],
    "cached": {},
    "starved": [],
    "reset": [],
    "offloaded": [],
    "evicted": 0,
    "tries": 0,
    "fast": False,
    "finished": [],
    "blocked": False,
}
"""Fields that a recorded row leaves out."""
