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

    # What most requests never change is a class attribute: making a request is on the simulator's hot path.
    status = "waiting"
    generated = 0
    """Output tokens known so far; while the request is in a `DecodeSet` it is derived, see there."""
    computed = 0
    """Tokens whose KV exists or is being computed by a scheduled batch."""
    num_blocks = 0
    ready = 0
    """Leading tokens whose KV the request brings with it, computed by a prefill pool; its first token is known then."""
    sends_kv = False
    """Whether its KV must stay when it ends, because it is on its way to a decode pool (see `Scheduler.release`)."""
    registered = 0
    """Leading blocks whose content is registered in the prefix cache."""
    num_preemptions = 0
    cached_tokens = 0
    """Tokens found in the prefix cache at the latest admission."""
    order = 0
    base = 0
    phase = -1
    """Residue class in the `DecodeSet`; negative outside it."""
    decode_end = -1
    ticket = -1
    """The executor's: the count of decode iterations with which the request ends, and which note of it holds."""
    own_node: Any = None
    cursor: Any = None
    """The block manager's: where in the tree of contents the registration of this request goes on."""
    group: Any = None
    deadline: float | None = None
    state: Any = None
    """A policy's own notes about this request."""
    payload: Any = None
    """The executor's notes: token ids in the engine, record columns in the simulator."""
    content: Content = ()
    output_id: int | None = None
    adapter: str | None = None
    ignore_eos = False
    """Whether the client asked for exactly `max_tokens` tokens."""

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
        self.target = prompt_length
        """Tokens to compute before the next one can be sampled: the prompt, after a preemption also the output."""
        self.max_tokens = max_tokens
        self.arrival_time = arrival_time
        self.priority = priority
        self.n = n
        self.held: list[Any] = []
        if content:
            self.content = content
        if output_id is not None:
            self.output_id = output_id
        if adapter is not None:
            self.adapter = adapter
        if ignore_eos:
            self.ignore_eos = True

    def __repr__(self) -> str:
        return f"Request({self.id!r}, prompt={self.prompt_length}, computed={self.computed}, {self.status})"


WAITING = "waiting"
RUNNING = "running"
PREEMPTED = "preempted"
SWAPPED = "swapped"
FINISHED = "finished"
