"""The bodies of OpenAI's completions and chat completions requests, and what they ask of the sampler.

https://platform.openai.com/docs/api-reference; the fields that OpenAI does not have (``top_k``, ``min_p``,
``ignore_eos``, ...) are vLLM's. A field that is not listed here is refused: an option that is silently
ignored would be a wrong measurement.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.params import SamplingParams
from simulator.errors import ConfigurationError

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest"]

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class StreamOptions(BaseModel):
    """``include_usage``: one more chunk at the end with the token counts; ``continuous_usage_stats``: with it, every
    chunk has the counts of its own choice so far (vLLM's), so that a client can tell tokens from chunks.
    """

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(None, ge=-(1 << 62), lt=1 << 62)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    priority: int = 0
    user: str | None = None

    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """The sampler's parameters."""
        return SamplingParams(
            n=self.n,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stops(),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            priority=self.priority,
        )


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; several prompts make several choices."""

    prompt: str | Tokens | list[str] | list[Tokens]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None

    def prompts(self) -> list[str | list[int]]:
        """Every prompt."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        found: list[str | list[int]] = [prompt] if single else list(prompt)
        if not found:
            raise ConfigurationError("prompt []: at least one prompt is needed")
        if self.best_of not in (None, self.n):
            raise ConfigurationError(f"best_of {self.best_of}: must be n ({self.n}) or absent")
        return found


class ContentPart(BaseModel):
    """A part of a message; only text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text, as a chat template takes them."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``. Without a limit the answer may fill the context."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def limit(self) -> int | None:
        """The client's limit; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    def num_logprobs(self) -> int | None:
        """As the sampler counts: None where log probabilities are not wanted."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ConfigurationError("top_logprobs needs logprobs true")
        return (self.top_logprobs or 0) if self.logprobs else None
