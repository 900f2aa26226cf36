"""A request as a scheduler sees it.

A real scheduler knows the prompt, the client's ``max_tokens`` and what has been generated
so far; it does not know where the answer will end. Neither does this class: the number of
output tokens is the executor's secret (`simulator.replica` reads it from the trace, `engine`
from its sampler).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Content", "Request"]

Content = Sequence[tuple[int, int]]
"""What a prompt's leading tokens are: runs of ``(content id, number of tokens)``."""


class Request:
    """One sequence of one client request, from arrival to its last token.

    *prompt_length* and *max_tokens* are in tokens. *content* names the leading tokens of the
    prompt; what it does not name is the request's own. *output_id* is the content id under which
    a later prompt may name this request's output. *arrival_time* is in seconds of the driver's clock.
    """

    __slots__ = (
        "adapter",
        "arrival_time",
        "base",
        "cached_tokens",
        "computed",
        "content",
        "deadline",
        "decode_end",
        "generated",
        "group",
        "held",
        "id",
        "ignore_eos",
        "index",
        "max_tokens",
        "n",
        "num_blocks",
        "num_preemptions",
        "order",
        "output_id",
        "own_node",
        "payload",
        "phase",
        "priority",
        "prompt_length",
        "registered",
        "state",
        "status",
        "target",
        "ticket",
    )

    def __init__(
        self,
        id: str,
        prompt_length: int,
        max_tokens: int,
        *,
        arrival_time: float = 0.0,
        index: int = 0,
        priority: int = 0,
        n: int = 1,
        content: Content = (),
        output_id: int | None = None,
        adapter: str | None = None,
        ignore_eos: bool = False,
    ) -> None:
        self.id = id
        self.index = index
        self.prompt_length = prompt_length
        self.max_tokens = max_tokens
        self.arrival_time = arrival_time
        self.priority = priority
        self.n = n
        self.content = content
        self.output_id = output_id
        self.adapter = adapter
        self.ignore_eos = ignore_eos
        """Whether the client asked for exactly `max_tokens` tokens."""
        self.status = WAITING
        self.generated = 0
        """Output tokens known so far; while the request is in a `DecodeSet` it is derived, see there."""
        self.computed = 0
        """Tokens whose KV exists or is being computed by a scheduled batch."""
        self.target = prompt_length
        """Tokens to compute before the next one can be sampled: the prompt, after a preemption also the output."""
        self.num_blocks = 0
        self.num_preemptions = 0
        self.cached_tokens = 0
        """Tokens found in the prefix cache at the latest admission."""
        self.order = 0
        self.base = 0
        self.phase = -1
        self.decode_end = -1
        self.ticket = -1
        """The executor's: the count of decode iterations with which the request ends, and which note of it holds."""
        self.held: list[Any] = []
        self.registered = 0
        self.own_node: Any = None
        self.group: Any = None
        self.deadline: float | None = None
        self.state: Any = None
        """A policy's own notes about this request."""
        self.payload: Any = None
        """The executor's notes: token ids in the engine, record columns in the simulator."""

    def __repr__(self) -> str:
        return f"Request({self.id!r}, prompt={self.prompt_length}, computed={self.computed}, {self.status})"


WAITING = "waiting"
RUNNING = "running"
PREEMPTED = "preempted"
SWAPPED = "swapped"
FINISHED = "finished"
