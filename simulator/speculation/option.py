"""What a user states of speculative decoding, as a mapping in YAML or as one text on the command line.

    speculation:
      method: draft
      model: llama-3.2-1b
      tokens: 4
      acceptance: 0.7

    --speculation "method=draft,model=llama-3.2-1b,tokens=4,acceptance=0.7"

In a text ``;`` separates as well as ``,``, for lists of alternatives; ``none`` is no speculation.

An acceptance rate depends on target, draft and text; nothing here guesses one. One number is the probability that a
draft is right given that those before it were, the same at every position (Leviathan et al. 2023's α). A list is the
share of drafts whose token at each position was accepted, as vLLM logs it ("Per-position acceptance rate") and its
benchmark writes ``spec_decode_per_position_acceptance_rates``; in a text its numbers are separated by ``/``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

__all__ = ["METHODS", "Speculation", "Stated"]

METHODS = ("draft", "eagle", "mtp", "medusa", "ngram")
MTP_ACCEPTANCE = 0.85
MTP_SOURCE = "DeepSeek-V3 Technical Report, section 5.4.3: the second token is accepted in 85 to 90 %"
LOOKUP_US = 10.0
LARGEST_DRAFT = 64


class Speculation(BaseModel):
    """Speculative decoding.

    *tokens*: depth of a draft; with an acceptance rate per position as many, with an MTP layer one. *acceptance*: a
    rate or one per position; only one MTP layer has a published one. *tree*: tokens checked per sequence and step
    where drafts branch; None: a chain of *tokens*. *match*: share of the steps for which an n-gram is found (1).
    *lookup_us*: host time of that search per sequence and step (assumed: 10). *host_us*: host time of each forward
    of a draft that its kernels do not hide; by default what is known of the system. *draft_tensor_parallel_size*: of a
    draft model, by default the target's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["draft", "eagle", "mtp", "medusa", "ngram"]
    model: str | None = None
    tokens: int | None = Field(None, ge=1, le=LARGEST_DRAFT)
    acceptance: float | tuple[float, ...] | None = None
    dtype: str | None = None
    draft_tensor_parallel_size: int | None = Field(None, ge=1)
    tree: int | None = Field(None, ge=1, le=1024)
    match: float | None = Field(None, gt=0, le=1)
    lookup_us: float | None = Field(None, ge=0)
    host_us: float | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, stated: Any) -> Any:
        """A text becomes a mapping."""
        values = parse(stated) if isinstance(stated, str) else stated
        if not isinstance(values, Mapping):
            raise ValueError(f"must be a mapping or method=...,tokens=..., not {values!r}")
        if "method" not in values:
            raise ValueError(f"needs a method: {', '.join(METHODS)}")
        return values

    @field_validator("acceptance")
    @classmethod
    def _probabilities(cls, acceptance: float | tuple[float, ...] | None) -> Any:
        if acceptance is None:
            return None
        rates = acceptance if isinstance(acceptance, tuple) else (acceptance,)
        if not rates or not all(0 <= rate <= 1 for rate in rates):
            raise ValueError("every rate must be from 0 to 1")
        if any(later > earlier for earlier, later in pairwise(rates)):
            raise ValueError(
                "rates by position cannot rise: a token counts only if those before it are accepted"
            )
        return acceptance

    @model_validator(mode="after")
    def _consistent(self) -> Speculation:
        if self.depth < 1:
            raise ValueError("needs tokens, the length of a draft")
        if isinstance(self.acceptance, tuple) and len(self.acceptance) != self.depth:
            raise ValueError(f"{len(self.acceptance)} acceptance rates for {self.depth} tokens")
        if self.acceptance is None and (self.method, self.depth) != ("mtp", 1):
            raise ValueError(
                "needs an acceptance rate, which depends on target, draft and text; vLLM logs it per position"
            )
        if self.method == "draft" and self.model is None:
            raise ValueError("method draft needs a model")
        for name in ("model", "draft_tensor_parallel_size"):
            if self.method != "draft" and getattr(self, name) is not None:
                raise ValueError(f"{name} is of method draft; {self.method} has none")
        for name in ("match", "lookup_us"):
            if self.method != "ngram" and getattr(self, name) is not None:
                raise ValueError(f"{name} is of method ngram")
        for name in ("dtype", "host_us"):
            if self.method == "ngram" and getattr(self, name) is not None:
                raise ValueError(f"{name}: method ngram runs no draft on the GPU")
        if self.tree is not None and self.tree < self.depth:
            raise ValueError(f"tree {self.tree}: cannot hold a path of {self.depth} tokens")
        return self

    @property
    def depth(self) -> int:
        """Tokens of a draft: as stated, as many as there are rates, or one of an MTP layer; 0 where nothing says."""
        if self.tokens is not None:
            return self.tokens
        if isinstance(self.acceptance, tuple):
            return len(self.acceptance)
        return 1 if self.method == "mtp" else 0

    @property
    def rates(self) -> tuple[float, ...]:
        """Probability that the draft at each position is accepted given that those before it were."""
        if self.acceptance is None:
            return (MTP_ACCEPTANCE,)
        if not isinstance(self.acceptance, tuple):
            return (self.acceptance,) * self.depth
        found, before = [], 1.0
        for share in self.acceptance:
            found.append(share / before if before else 0.0)
            before = share
        return tuple(found)

    @property
    def checked(self) -> int:
        """Drafted tokens that the target checks per sequence and step."""
        return self.depth if self.tree is None else self.tree

    @property
    def text(self) -> str:
        """What is stated, in the form of the command line."""
        return ",".join(
            f"{name}={_plain(value)}" for name, value in self.model_dump(exclude_unset=True).items()
        )


Stated = Annotated[Speculation | None, BeforeValidator(lambda value: None if value == "none" else value)]
"""A field that holds `Speculation`, or none."""


def parse(text: str) -> dict[str, Any]:
    """``method=draft,tokens=4,acceptance=0.8/0.6/0.5/0.4`` as a mapping."""
    values: dict[str, Any] = {}
    for part in re.split("[,;]", text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise ValueError(f"{part!r} must be NAME=VALUE")
        if name == "acceptance" and "/" in value:
            values[name] = [yaml.safe_load(rate) for rate in value.split("/")]
        else:
            values[name] = yaml.safe_load(value)
    return values


def _plain(value: Any) -> str:
    return "/".join(f"{rate:g}" for rate in value) if isinstance(value, (list, tuple)) else str(value)
