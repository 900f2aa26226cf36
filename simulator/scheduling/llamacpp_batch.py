"""The batch of one step of llama.cpp's server, and how a call of the model cuts it into micro-batches.

With a unified KV cache the tokens are taken in order. With one stream per slot a micro-batch is
rectangular: consecutive slots with the same number of tokens each (`split_simple` and `split_equal` in
src/llama-batch.cpp). So a call that mixes decoding slots with a prompt, or slots that are not neighbours,
runs the model more than once.
"""

from __future__ import annotations

from collections import deque

from simulator.scheduling.base import Batch
from simulator.scheduling.llamacpp_slots import Slot
from simulator.scheduling.request import Request

__all__ = ["Part", "Row", "Step", "micro_batches"]

Row = tuple[int, Request, int, int, bool]
"""Slot, request, new tokens, tokens before them, whether it decodes."""


class Part:
    """Tokens of one slot in a step that are still to compute; *whole*: they end its prompt."""

    __slots__ = ("count", "decodes", "slot", "whole")

    def __init__(self, slot: Slot, count: int, *, decodes: bool = False, whole: bool = False) -> None:
        self.slot = slot
        self.count = count
        self.decodes = decodes
        self.whole = whole


class Step:
    """One pass of the loop: *parts* in batch order, done up to *offset*, and the next call's size."""

    __slots__ = ("n_batch", "offset", "parts", "size")

    def __init__(self, n_batch: int) -> None:
        self.n_batch = n_batch
        self.parts: deque[Part] = deque()
        self.size = 0
        self.offset = 0

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.size += part.count


def micro_batches(rows: list[Row], n_ubatch: int, *, unified: bool) -> list[Batch]:
    """The forwards that compute *rows*, in order."""
    left = [row[2] for row in rows]
    place = {row[0]: i for i, row in enumerate(rows)}
    forwards = []
    while any(left):
        turn = _in_order(left, n_ubatch) if unified else _rectangle(rows, place, left, n_ubatch)
        forward, context = Batch(), 0
        forward.decodes = decodes = []
        for i, n in turn:
            row = rows[i]
            if row[4]:
                decodes.append(row[1])
                context += row[3] + row[2]
                left[i] = 0
            else:
                forward.prefills.append((row[1], n, row[3] + row[2] - left[i]))
                left[i] -= n
        forward.num_decodes, forward.decode_context = len(decodes), context
        forwards.append(forward)
    return forwards


def _in_order(left: list[int], room: int) -> list[tuple[int, int]]:
    turn = []
    for i, count in enumerate(left):
        n = min(count, room)
        if n:
            turn.append((i, n))
            room -= n
    return turn


def _rectangle(
    rows: list[Row], place: dict[int, int], left: list[int], n_ubatch: int
) -> list[tuple[int, int]]:
    """Slots whose numbers follow each other, in *rows*' order, and as many tokens of each as all have.

    *place* is the row of each slot.
    """
    i = next(i for i, count in enumerate(left) if count)
    chosen, n, slot = [i], left[i], rows[i][0]
    while len(chosen) < n_ubatch:
        slot += 1
        after = place.get(slot, -1)
        if after < i or not left[after]:
            break
        i = after
        chosen.append(i)
        if left[i] < n:
            n = left[i]
    n = min(n, max(n_ubatch // len(chosen), 1))
    return [(i, n) for i in chosen]
