"""What stands behind the HTTP front: anything that turns prompts into a stream of tokens.

`engine.server.loop.EngineLoop` is the real engine; a simulated executor that implements the same protocol
can stand behind the same front, so that a load generator meets a predicted system. All methods may be
called from any thread; *deliver* is called from the executor's own thread and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.params import SamplingParams
from engine.sequence import TokenLogprobs
from engine.stats import Stats
from engine.tokenizer import Tokenizer

__all__ = ["Deliver", "ServingExecutor", "Update"]


@dataclass(frozen=True)
class Update:
    """What sample *index* of a request has gained: text, tokens, and with the last one why it ended.

    *time* and *scheduled* are seconds of the executor's clock. With *error* set no more updates of any
    sample will come; *refused* says that the request itself can never run (the client's fault), otherwise
    the server is at fault.
    """

    index: int
    time: float
    text: str = ""
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs | None] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    scheduled: float | None = None
    cached_tokens: int = 0
    error: str | None = None
    refused: bool = False


Deliver = Callable[[Update], None]


class ServingExecutor(Protocol):
    """A model that serves."""

    model_name: str
    max_model_len: int
    tokenizer: Tokenizer

    def start(self) -> None:
        """Begin to work."""
        ...

    def submit(self, request_id: str, prompt: list[int], params: SamplingParams, deliver: Deliver) -> None:
        """Queue a prompt; everything about it, errors too, comes through *deliver*."""
        ...

    def cancel(self, request_id: str) -> None:
        """The client has gone: free what the request holds. Unknown and finished ids are ignored."""
        ...

    def stats(self) -> Stats:
        """Queues and blocks now."""
        ...

    def clock(self) -> float:
        """Now, in the seconds of `Update.time`."""
        ...

    def stop(self, reason: str) -> None:
        """End every request with an error that gives *reason*, free everything and return when that is
        done.
        """
        ...
