"""The slots of llama.cpp's server, and which of them a request gets.

A slot is a seat with a context of its own. It keeps the tokens of its last request, and the next one that
starts alike computes only the rest. So the choice of the slot is the prefix cache: the idle slot with the
longest common prefix if that is more than ``slot_prompt_similarity`` of the prompt, else the one released
longest ago, whose contents go to the prompt cache in host memory (`get_available_slot`,
tools/server/server-context.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.scheduling.request import Request
from simulator.scheduling.token_runs import Tokens

__all__ = ["IDLE", "Completion", "Slot", "least_recently_used", "most_similar"]

IDLE = "idle"
STARTED = "started"
"""Has a request of which nothing is computed."""
PROMPT = "prompt"
DONE = "done"
"""The whole prompt is in the batch."""
WAITS = "waits"
"""Waits for the prompt of the request it is a further completion of."""
GENERATING = "generating"
NEVER = -1


@dataclass
class Completion:
    """What llama.cpp's API lets a client say about a request, put into ``Request.state`` before it is added.

    *id_slot* wishes for a slot (-1: none); *n_keep* (-1: the whole prompt) and *n_discard* (0: half) govern
    context shifts.
    """

    cache_prompt: bool = True
    id_slot: int = -1
    n_keep: int = 0
    n_discard: int = 0
    prompt: Tokens | None = None
    output: object = None
    """The name of the output's tokens."""
    slot: Slot | None = None
    parent: Request | None = None
    full_at: int = -1
    """The count of decode iterations at which its context is full."""
    truncated: bool = False
    """Whether the context ran out."""


class Slot:
    """Seat *index*: the *tokens* it holds, and the request it serves."""

    __slots__ = ("index", "last_used", "pushed", "request", "state", "tokens")

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens = Tokens()
        self.request: Request | None = None
        self.state = IDLE
        self.last_used = NEVER
        self.pushed = 0
        """Output tokens of its request that `tokens` lists."""


def most_similar(slots: list[Slot], prompt: Tokens, threshold: float) -> tuple[Slot | None, np.float32]:
    """The idle slot that has the most of *prompt*, above *threshold* (a fraction of it); and that fraction.

    The server reckons in single precision.
    """
    found, best, least = None, np.float32(0), np.float32(threshold)
    for slot in slots:
        if slot.state is IDLE and slot.tokens.head == prompt.head:
            similarity = np.float32(slot.tokens.common_prefix(prompt)) / np.float32(len(prompt))
            if similarity > best and similarity > least:
                found, best = slot, similarity
    return found, best


def least_recently_used(slots: list[Slot]) -> Slot | None:
    """The idle slot released longest ago, of those never used the last."""
    found = None
    for slot in slots:
        if slot.state is IDLE and (found is None or slot.last_used <= found.last_used):
            found = slot
    return found
