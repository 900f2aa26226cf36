"""Cases recorded from LMDeploy's PyTorch engine (``lmdeploy-0.18.0-*``): one row per forward, decided one ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.lmdeploy import Lmdeploy
from simulator.scheduling.request import RUNNING, Request

__all__ = ["replay"]

OPTIONS = (
    "max_batch_size",
    "session_len",
    "prefill_interval",
    "block_size",
    "max_prefill_token_num",
    "enable_prefix_caching",
)


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our forwards beside the recorded ones, each when its output has been applied."""
    loop = _Loop(case)
    for theirs in case.steps:
        ours = loop.row(theirs["step"])
        yield ours, theirs


class _Loop:
    def __init__(self, case: Case) -> None:
        config = {name: case.config[name] for name in OPTIONS}
        usable = case.config["num_gpu_blocks"] - 1  # one is reserved
        self.scheduler = Lmdeploy(num_gpu_blocks=usable, explicit=True, **config)
        self.seconds = case.config["iteration_seconds"]
        self.outputs = {r["id"]: r["output_len"] for r in case.requests}
        self.arrivals = [(r["arrival_step"], _request(i, r)) for i, r in enumerate(case.requests)][::-1]
        self.kept = dict.fromkeys(self.outputs, 0)
        self.inflight: list[tuple[Batch, dict[str, Any]]] = []
        self.step = 0

    def row(self, step: int) -> dict[str, Any]:
        """The row of forward *step*, complete: the forward after it has been decided."""
        while not self.inflight:
            self.step = max(self.step, step)
            if not self._decide():
                return {"step": step}
        self._decide()
        batch, row = self.inflight.pop(0)
        self._apply(batch, row)
        return row

    def _decide(self) -> bool:
        if not self.inflight and not (self.scheduler.running or self.scheduler.line) and self.arrivals:
            self.step = max(self.step, self.arrivals[-1][0])
        now = self.step * self.seconds
        while self.arrivals and self.arrivals[-1][0] <= self.step:
            self.scheduler.add(self.arrivals.pop()[1], now)
        batch = self.scheduler.schedule(now)
        if not isinstance(batch, Batch):
            return False
        self.inflight.append((batch, self._row(batch)))
        for earlier, row in self.inflight[:-1]:
            rows = {request for request, _ in earlier.rows()}
            row["dropped"] += [request.id for request in batch.preempted if request in rows]
        self.step += 1
        return True

    def _row(self, batch: Batch) -> dict[str, Any]:
        scheduler, notes = self.scheduler, batch.notes or {}
        decision: Any = notes["decision"]
        return {
            "step": self.step,
            "kind": notes["kind"],
            "scheduled": {request.id: tokens for request, tokens in batch.rows()},
            "new_cached": {request.id: tokens for request, tokens in batch.cached.items()},
            "preempted": [request.id for request in batch.preempted],
            "evicted": [request.id for request in decision.evicted],
            "trie_evicted": decision.trie_evicted,
            "dropped": [],
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "stopped": len(scheduler.line.stopped),
            "free_blocks": scheduler.memory.num_free,
        }

    def _apply(self, batch: Batch, row: dict[str, Any]) -> None:
        """Hand out the tokens of *batch*; a sequence that is not running any more gets none."""
        ended = []
        for request in (*(batch.decodes or ()), *batch.joining):
            if request.status is not RUNNING:
                if request.id not in row["dropped"]:
                    row["dropped"].append(request.id)
                continue
            self.kept[request.id] += 1
            if self.kept[request.id] == self.outputs[request.id]:
                ended.append(request)
        row["finished"] = [request.id for request in ended]
        self.scheduler.commit(batch, ended, self.step * self.seconds)


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len") or 0, r["prompt_len"])
    content = ((r["prefix_id"], prefix),) if prefix else ()
    return Request(r["id"], r["prompt_len"], r["output_len"], index=index, content=content)
