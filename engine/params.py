"""What a client may ask of the sampler; names and ranges are those of vLLM and OpenAI."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.errors import ConfigurationError

__all__ = ["MAX_LOGPROBS", "SamplingParams"]


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued; names and ranges are those of vLLM and OpenAI.

    *n* samples of at most *max_tokens* tokens each, ended by an end-of-text token (unless *ignore_eos*),
    one of *stop_token_ids* or the appearance of one of *stop* in the text. *temperature* 0 is greedy.
    *logprobs* asks for the log probabilities of that many likeliest tokens beside the chosen one's (0: the
    chosen one's alone).
    """

    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    priority: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name, low, high in RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"{name} {value}: must be between {low:g} and {high:g}")
        if self.top_p <= 0 or self.repetition_penalty <= 0:
            raise ConfigurationError(
                f"top_p {self.top_p} and repetition_penalty {self.repetition_penalty}: must be above 0"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigurationError(f"logprobs {self.logprobs}: must be between 0 and {MAX_LOGPROBS}")
        if any(not text for text in self.stop):
            raise ConfigurationError("stop '': a stop string must not be empty")

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


MAX_LOGPROBS = 256  # beam search asks for two per beam; the server allows OpenAI's 20
RANGES = (
    ("n", 1, 256),
    ("max_tokens", 1, 1 << 31),
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)
