"""What a policy decided, iteration by iteration, in a form that two runs can be compared by.

A decision is who computes how many tokens after which context, who lost its blocks, who was turned away, and how
many blocks are held afterwards. The engine and the simulator drive the same policy object; given the same step times
they must be told the same, and the first decision that differs says where they do not drive it alike. Needs nothing
but the standard library, so that a bare machine can record it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import Request

__all__ = ["Decision", "DecisionLog", "first_difference"]


@dataclass(frozen=True)
class Decision:
    """One iteration; requests by their place in order of arrival."""

    decodes: tuple[int, ...]
    prefills: tuple[tuple[int, int, int], ...]
    """(request, chunk, context before it)."""
    joining: tuple[int, ...]
    """Who gets a token from its prefill."""
    preempted: tuple[int, ...]
    refused: tuple[int, ...]
    """Turned away or given up."""
    blocks: tuple[int, int, int]
    """Held after the decision, swapped in, swapped out."""
    num_forwards: int = 1
    """0 where the device has nothing to do, several for micro-batches."""

    @property
    def digest(self) -> int:
        """32 bits that stand for the decision in a recording."""
        return zlib.crc32(repr(self._parts()).encode())

    def _parts(self) -> tuple[Any, ...]:
        asked = (self.decodes, self.prefills, self.joining, self.num_forwards)
        return (*asked, self.preempted, self.refused, self.blocks)

    def __str__(self) -> str:
        chunks = ", ".join(f"r{request} {chunk}+{context}" for request, chunk, context in self.prefills)
        parts = [f"decodes {_names(self.decodes)}", f"prefills {chunks or 'none'}"]
        parts += [f"preempts {_names(self.preempted)}"] if self.preempted else []
        parts += [f"refuses {_names(self.refused)}"] if self.refused else []
        return f"{'; '.join(parts)}; {self.blocks[0]} blocks held"


class DecisionLog:
    """Hears every decision of *scheduler*, which must schedule ``explicit``.

    Only references are kept while the policy runs, so that listening takes no time that would be measured.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._noted: list[tuple[Any, ...]] = []
        decide = scheduler.schedule

        def schedule(now: float) -> Batch | Wait | None:
            batch = decide(now)
            if isinstance(batch, Batch):
                self._noted.append((*_references(batch), scheduler.blocks_used))
            return batch

        scheduler.schedule = schedule  # type: ignore[method-assign]

    def __iter__(self) -> Iterator[Decision]:
        for forwards, joining, preempted, refused, swapped, used in self._noted:
            yield Decision(
                tuple(request.index for decodes, _ in forwards for request in decodes),
                tuple(
                    (r.index, chunk, context) for _, prefills in forwards for r, chunk, context in prefills
                ),
                _indices(joining),
                _indices(preempted),
                tuple(request.index for request, _ in refused),
                (used, *swapped),
                sum(bool(decodes or prefills) for decodes, prefills in forwards),
            )


def first_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    """Where two runs part, None where they do not; the end of the shorter one counts."""
    for place, (one, other) in enumerate(zip(ours, theirs)):
        if one != other:
            return place
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _references(batch: Batch) -> tuple[Any, ...]:
    """Copies of the lists, since a policy may go on using its own."""
    parts = batch.forwards or [batch]
    forwards = [(tuple(part.decodes or ()), tuple(part.prefills)) for part in parts]
    refused = (*batch.rejected, *batch.failed)
    swapped = (batch.blocks_swapped_in, batch.blocks_swapped_out)
    return forwards, tuple(batch.joining), tuple(batch.preempted), refused, swapped


def _indices(requests: Sequence[Request]) -> tuple[int, ...]:
    return tuple(request.index for request in requests)


def _names(requests: tuple[int, ...]) -> str:
    return " ".join(f"r{request}" for request in requests) or "none"
