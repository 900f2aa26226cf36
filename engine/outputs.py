"""What a caller of the engine gets back."""

from __future__ import annotations

from dataclasses import dataclass

from engine.sequence import Sequence, TokenLogprobs

__all__ = ["Completion", "RequestOutput"]


@dataclass(frozen=True)
class Completion:
    """One sample. *cumulative_logprob* is the sum over its tokens, where log probabilities were asked for."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs | None] | None = None
    cumulative_logprob: float | None = None

    @classmethod
    def of(cls, index: int, sequence: Sequence) -> Completion:
        """The sample that *sequence* has become."""
        asked = sequence.params.logprobs is not None
        total = sum(entry.chosen for entry in sequence.logprobs if entry is not None)
        return cls(
            index=index,
            text=sequence.text,
            token_ids=sequence.output,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            logprobs=list(sequence.logprobs) if asked else None,
            cumulative_logprob=total if asked else None,
        )


@dataclass(frozen=True)
class RequestOutput:
    """A prompt with its samples."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    num_cached_tokens: int = 0
    num_preemptions: int = 0
