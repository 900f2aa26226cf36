"""One sample of one prompt while it is being generated: its tokens, its text, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.params import SamplingParams
from engine.tokenizer import Detokenizer, Tokenizer
from simulator.scheduling.request import Request

__all__ = ["Sequence", "TokenLogprobs"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probability of the chosen token, and those of the likeliest, best first."""

    chosen: float
    top: dict[int, float]


@dataclass
class Times:
    """Seconds of the executor's clock; the events are vLLM's QUEUED, SCHEDULED and NEW_TOKENS."""

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def copy(self) -> Times:
        """The same times, to go on from."""
        return replace(self)


@dataclass(eq=False)
class Sequence:
    """Token ids are *prompt*, then what was generated; `finish_reason` is ``stop``, ``length``, ``abort``
    or ``error``.
    """

    request: Request
    prompt: list[int]
    params: SamplingParams
    seed: int
    times: Times
    eos: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    detokenizer: Detokenizer | None = None
    text_end: int | None = None
    index: int = 0
    group: list[Sequence] = field(default_factory=list)
    """All samples of the prompt, this one among them."""
    content: list[tuple[int, int]] = field(default_factory=list)
    """The runs by which a prefix cache finds its tokens; the request's own list, so that it grows with
    them.
    """

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.request.content = self.content = list(self.request.content)

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    @property
    def num_output(self) -> int:
        """Generated tokens."""
        return len(self.tokens) - len(self.prompt)

    @property
    def output(self) -> list[int]:
        """Generated token ids."""
        return self.tokens[len(self.prompt) :]

    @property
    def text(self) -> str:
        """Generated text that is certain: up to a stop string, and not what might become the beginning of
        one.
        """
        if self.detokenizer is None:
            return ""
        self._read()
        text = self.detokenizer.text
        if self.finished:
            return text if self.text_end is None else text[: self.text_end]
        return text[: len(text) - self._held_back(text)]

    def _held_back(self, text: str) -> int:
        """Characters at the end that begin a stop string."""
        lengths = (
            size for stop in self.params.stop for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )  # fmt: skip
        return max(lengths, default=0)

    def append(self, token: int, logprobs: TokenLogprobs | None, now: float) -> None:
        """Take the next token and find out whether it is the last."""
        self.tokens.append(token)
        if self.params.logprobs is not None:
            self.logprobs.append(logprobs)
        self.times.first_token = self.times.first_token or now
        self.times.last_token = now
        self._ends_at(token)
        if self.params.stop and not self.finished:
            self._look_for_stops()
        if not self.finished and self.num_output >= self.request.max_tokens:
            self.finish("length")

    def _ends_at(self, token: int) -> None:
        if token in self.params.stop_token_ids:
            self.finish("stop", token)
        elif token in self.eos and not self.params.ignore_eos:
            self.finish("stop")

    def _read(self) -> None:
        """Turn tokens into text as far as that has not been done; the token that ended the text is none."""
        assert self.detokenizer is not None
        silent = self.finish_reason == "stop" and self.text_end is None
        end = len(self.tokens) - silent
        for token in self.tokens[len(self.prompt) + self.detokenizer.num_tokens : end]:
            self.detokenizer.add(token)
        if self.finished or self.num_output >= self.request.max_tokens:
            self.detokenizer.flush()

    def _look_for_stops(self) -> None:
        if self.detokenizer is None:
            return
        before = len(self.detokenizer.text)
        self._read()
        text = self.detokenizer.text
        hits = [(text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self.params.stop]
        found = min((hit for hit in hits if hit[0] >= 0), default=None)
        if found is not None:
            at, stop = found
            self.text_end = at + len(stop) if self.params.include_stop else at
            self.finish("stop", stop)

    def finish(self, reason: str, stop: str | int | None = None, error: str | None = None) -> None:
        """No more tokens will come."""
        self.finish_reason, self.stop_reason, self.error = reason, stop, error


def make_detokenizer(tokenizer: Tokenizer | None) -> Detokenizer | None:
    """A detokenizer where there is a tokenizer."""
    return None if tokenizer is None else Detokenizer(tokenizer)
