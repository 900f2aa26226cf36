"""Driving a policy whose requests are groups of sequences (V0's parallel samples) through a recorded case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.paged import PagedScheduler
from simulator.scheduling.request import Request

__all__ = ["GroupDriver"]


class GroupDriver:
    """Adds the requests of *case* when they arrive and ends their sequences after the recorded tokens."""

    def __init__(self, case: Case, scheduler: PagedScheduler) -> None:
        self.case = case
        self.scheduler = scheduler
        self.outputs = {i: r["output_len"] for i, r in enumerate(case.requests)}
        self.ids = {i: r["id"] for i, r in enumerate(case.requests)}
        self._left: dict[int, int] = {}

    def run(self) -> Iterator[tuple[dict[str, Any], Batch | None, list[str]]]:
        """(recorded step, our batch, ids that finished with it); the scheduler is in the state after it."""
        arrivals = list(enumerate(self.case.requests))
        arrivals.reverse()
        for theirs in self.case.steps:
            step = theirs["step"]
            while arrivals and arrivals[-1][1]["arrival_step"] <= step:
                self.scheduler.add(_request(*arrivals.pop()), step)
            batch = self.scheduler.schedule(step)
            yield theirs, self._checked(batch), self._complete(batch, step)

    def _checked(self, batch: Any) -> Batch | None:
        return batch if isinstance(batch, Batch) else None

    def _complete(self, batch: Any, step: float) -> list[str]:
        if not isinstance(batch, Batch):
            return []
        scheduler = self.scheduler
        produced = (*(batch.decodes or ()), *batch.joining)
        ended = [r for r in produced if scheduler.decoding.generated(r) == self.outputs[r.index]]
        scheduler.commit(batch, ended, step)
        finished = []
        for request in ended:
            left = self._left.get(request.index, self.case.requests[request.index].get("n", 1)) - 1
            self._left[request.index] = left
            if not left:
                finished.append(self.ids[request.index])
        return sorted(finished)

    def scheduled(self, batch: Batch) -> dict[str, int]:
        """Tokens of a prompt chunk, or the number of decoding sequences, by request."""
        counts: dict[str, int] = {}
        for request in (*(batch.decodes or ()), *resumed(batch)):
            counts[self.ids[request.index]] = counts.get(self.ids[request.index], 0) + 1
        for request, chunk, _ in self.prompts(batch):
            counts[self.ids[request.index]] = chunk
        return counts

    def prompts(self, batch: Batch) -> list[tuple[Request, int, int]]:
        """Chunks of prompts; a sequence just swapped in is not one."""
        back = set(resumed(batch))
        return [prefill for prefill in batch.prefills if prefill[0] not in back]

    def preempted(self, batch: Batch) -> list[str]:
        """Requests that were preempted, in order."""
        return list(dict.fromkeys(self.ids[request.index] for request in batch.preempted))


def resumed(batch: Batch) -> list[Request]:
    """Sequences that *batch* swapped in: they compute one token each."""
    notes: dict[str, Any] = batch.notes or {}
    return list(notes.get("resumed", ()))


def _request(index: int, r: dict[str, Any]) -> Request:
    prefix = min(r.get("prefix_len", 0), r["prompt_len"])
    return Request(
        r["id"],
        r["prompt_len"],
        r["output_len"],
        index=index,
        arrival_time=r["arrival_time"],
        priority=r.get("priority", 0),
        n=r.get("n", 1),
        content=((r["prefix_id"], prefix),) if prefix else (),
    )
