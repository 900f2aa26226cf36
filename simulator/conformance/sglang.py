"""Cases recorded from SGLang's scheduler (``sglang-0.5.23-*``): one row per pass of its loop.

The overlapped loop launches a pass before it processes the results of the pass before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.request import RUNNING, Request
from simulator.scheduling.sglang import Sglang

__all__ = ["replay"]

OPTIONS = (
    "max_total_tokens",
    "max_running_requests",
    "page_size",
    "max_prefill_tokens",
    "chunked_prefill_size",
    "context_length",
    "schedule_policy",
    "schedule_conservativeness",
    "disable_radix_cache",
    "disable_overlap_schedule",
    "enable_mixed_chunk",
)


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, a pass at a time."""
    loop = _Loop(case)
    arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)]
    arrivals.reverse()
    for theirs in case.steps:
        while arrivals and arrivals[-1][0] <= theirs["step"]:
            loop.scheduler.add(arrivals.pop()[1], theirs["step"])
        yield loop.run(theirs["step"]), _expected(theirs)


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len", 0), r["prompt_len"])
    return Request(
        r["id"],
        r["prompt_len"],
        r.get("max_new_tokens", r["output_len"]),
        index=index,
        content=((r["prefix_id"], prefix),) if prefix else (),
        ignore_eos=r.get("ignore_eos", False),
    )


class _Loop:
    def __init__(self, case: Case) -> None:
        options = {name: case.config[name] for name in OPTIONS if name in case.config}
        self.scheduler = Sglang(**options, explicit=True)
        self.outputs = {r["id"]: r["output_len"] for r in case.requests}
        self.launched: list[tuple[Batch, list[Request]]] = []

    def run(self, step: int) -> dict[str, Any]:
        scheduler = self.scheduler
        was_idle = not self.launched
        batch = scheduler.schedule(step)
        assert batch is None or isinstance(batch, Batch)
        ours = self._launched(step, batch)
        keep = 0
        if batch is not None:
            self.launched.append((batch, self._last_tokens(batch)))
            keep = scheduler.depth - 1
        ours["finished"] = sorted(r.id for r in self._process(keep, step))
        if batch is None and was_idle and not scheduler.running and not scheduler.num_waiting:
            ours["idle"] = True
        return ours | self._state()

    def _launched(self, step: int, batch: Batch | None) -> dict[str, Any]:
        if batch is None:
            return {
                "step": step,
                "mode": None,
                "scheduled": {},
                "prefill": [],
                "new_cached": {},
                "retracted": [],
            }
        mode = ("mixed" if batch.num_decodes else "extend") if batch.prefills else "decode"
        rows = [(r.id, chunk) for r, chunk, _ in batch.prefills] + [(r.id, 1) for r in batch.decodes or ()]
        return {
            "step": step,
            "mode": mode,
            "scheduled": dict(rows),
            "prefill": [r.id for r, _, _ in batch.prefills],
            "new_cached": {r.id: tokens for r, tokens in batch.cached.items()},
            "retracted": [r.id for r in batch.preempted],
        }

    def _last_tokens(self, batch: Batch) -> list[Request]:
        """The requests of *batch* whose last real token it computes."""
        rows = [*batch.joining, *(batch.decodes or ())]
        return [r for r in rows if self.scheduler.decoding.generated(r) == self.outputs[r.id]]

    def _process(self, keep: int, step: int) -> list[Request]:
        finished = []
        while len(self.launched) > keep:
            batch, last = self.launched.pop(0)
            ended = [r for r in last if r.status is RUNNING]
            self.scheduler.commit(batch, ended, step)
            finished += ended
        return finished

    def _state(self) -> dict[str, Any]:
        scheduler = self.scheduler
        cache = scheduler.pool.cache
        return {
            "running": len(scheduler.running),
            "waiting": scheduler.num_waiting,
            "chunked": scheduler.chunked.id if scheduler.chunked else None,
            "free": scheduler.pool.free,
            "evictable": cache.evictable if cache else 0,
            "protected": cache.protected if cache else 0,
            "batch_is_full": scheduler.batch_is_full,
            "new_token_ratio": round(scheduler.new_token_ratio.current, 6),
            "aborted": [],
        }


def _expected(theirs: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "scheduled": {},
        "prefill": [],
        "new_cached": {},
        "retracted": [],
        "finished": [],
    }
    return empty | theirs | {"finished": sorted(theirs.get("finished", []))}  # which are compared as a set
