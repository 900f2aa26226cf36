"""Updates turned into OpenAI's objects: whole answers and chunks of a stream, for both endpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.sequence import TokenLogprobs
from engine.server.executor import Update
from engine.tokenizer import Tokenizer

__all__ = ["Answer", "Choice", "usage"]


@dataclass
class Choice:
    """What one sample has so far."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, update: Update) -> None:
        """Take an update in."""
        self.text += update.text
        self.tokens.extend(update.tokens)
        self.logprobs.extend(update.logprobs)
        self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason


class Answer:
    """Makes the objects of one HTTP request; *chat* says of which endpoint."""

    def __init__(
        self, request_id: str, model: str, tokenizer: Tokenizer, *, chat: bool, logprobs: bool
    ) -> None:
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{request_id}"
        self.model, self.tokenizer, self.chat, self.logprobs = model, tokenizer, chat, logprobs
        self.created = int(time.time())

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [self._choice(choice) for choice in choices], "usage": usage}

    def first(self, index: int) -> dict[str, Any]:
        """The chunk that opens a chat choice: the role."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def chunk(self, index: int, update: Update) -> dict[str, Any]:
        """What *update* adds."""
        part = Choice(index)
        part.add(update)
        if not self.chat:
            return {**self._head("text_completion"), "choices": [self._choice(part)]}
        choice = self._choice(part)
        choice["delta"] = {"content": part.text}
        del choice["message"]
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that only brings the token counts."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"index": choice.index}
        if self.chat:
            body["message"] = {"role": "assistant", "content": choice.text}
        else:
            body["text"] = choice.text
        body["logprobs"] = self._logprobs(choice) if self.logprobs else None
        body["finish_reason"], body["stop_reason"] = choice.finish_reason, choice.stop_reason
        return body

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        pairs = [(t, p) for t, p in zip(choice.tokens, choice.logprobs) if p is not None]
        if self.chat:
            return {"content": [self._chat_entry(token, entry) for token, entry in pairs]}
        return {
            "tokens": [self._name(token) for token, _ in pairs],
            "token_logprobs": [entry.chosen for _, entry in pairs],
            "top_logprobs": [{self._name(t): p for t, p in entry.top.items()} for _, entry in pairs],
            "text_offset": [],
        }

    def _chat_entry(self, token: int, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._named(t, p) for t, p in entry.top.items()]
        return {**self._named(token, entry.chosen), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        name = self._name(token)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    def _name(self, token: int) -> str:
        name = self.tokenizer.decode([token])
        return name if "\ufffd" not in name else f"token_id:{token}"  # part of a character


def usage(prompt_tokens: int, tokens: int, cached: int) -> dict[str, Any]:
    """Token counts of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
