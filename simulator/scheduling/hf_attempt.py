"""What transformers' continuous batching keeps of a request, and of one walk over its candidates."""

from __future__ import annotations

from simulator.scheduling.request import Request

__all__ = ["Attempt", "Notes"]


class Notes:
    """What the policy keeps about a request: see the fields."""

    __slots__ = ("host_blocks", "prompt", "started", "unhashed")

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        """Tokens that count as its prompt: after a soft reset also the output so far."""
        self.unhashed = 0
        """Full blocks whose step was processed without hashing them (asynchronous batching)."""
        self.host_blocks = 0
        self.started = False
        """Whether it computed anything since it became active."""


class Attempt:
    """One walk over the candidates: budgets left, and what was scheduled."""

    __slots__ = (
        "chunks",
        "decodes",
        "failed",
        "fast",
        "in_margin",
        "reads",
        "requests",
        "rows",
        "starved",
        "tokens",
    )

    def __init__(self, tokens: int, reads: int, requests: int, fast: bool) -> None:
        self.tokens, self.reads, self.requests = tokens, reads, requests
        self.fast = fast
        """Whether all so far can take the decode fast path."""
        self.in_margin = True
        self.failed = False
        """Whether somebody found no free blocks."""
        self.rows = 0
        self.decodes: list[Request] | None = []
        """None: all decoding requests."""
        self.chunks: list[tuple[Request, int, int]] = []
        self.starved: list[tuple[Request, int]] = []
