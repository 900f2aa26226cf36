"""A step with speculation: the target checks the drafts, then the next ones are made.

    step = target(n · (1 + k) tokens, as many rows of logits, every KV read once)
         + draft(n · (1 + k) tokens, n rows)            the tokens just checked, and the first new draft
         + (k − 1) · draft(n tokens, n rows)            the others, one after the other
         + host time of a look-up in the text so far    instead, for n-grams

A prompt goes through the draft too, which needs the KV of it. Heads on the target's hidden state (Medusa) take one
pass on one row per sequence. The draft runs on the target's GPUs. Where prompts are replayed piecewise, as in vLLM, so
is a draft: it "only supports PIECEWISE cudagraphs" (vLLM 0.31, v1/spec_decode/llm_base_proposer.py; issue 33341), and
many thin layers wait for their launches. Host work between its passes counts as far as it is known or stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.models.drafts import DraftSpec
from simulator.steptime.engine_costs import EngineCosts
from simulator.steptime.operators import Operator
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.protocol import Laws
from simulator.steptime.steptime import Draft, Prefills, StepTime
from simulator.steptime.traits import HostTraits

__all__ = ["Drafter", "SpeculativeStepTime"]


@dataclass(frozen=True)
class Drafter:
    """What makes *tokens* drafts per sequence and step; *width*: mean tokens that the target checks of each.

    *spec* None: a look-up on the CPU, *lookup_s* seconds per sequence. *host_s* for every forward of a draft.
    """

    spec: DraftSpec | None
    parallelism: Parallelism
    tokens: int
    width: float
    lookup_s: float = 0.0
    host_s: float = 0.0
    one_by_one: bool = False
    """Whether drafts are made for one sequence after the other."""

    @property
    def forwards(self) -> int:
        """Forwards of the draft in a step."""
        return 0 if self.spec is None else 1 if self.spec.heads else self.tokens

    def passes(self, laws: Laws, traits: HostTraits) -> list[tuple[StepTime, int]]:
        """Forwards of the draft in a step, each with how often it runs."""
        if self.spec is None:
            return []
        step = replace(
            traits, per_step_s=0.0, per_seq_s=0.0, per_new_token_s=0.0, engine=_device_only(traits)
        )
        parts = self.spec, laws, self.parallelism, step
        if self.spec.heads:
            return [(DraftStep(*parts), 1)]
        return [(DraftStep(*parts, width=self.width), 1), (DraftStep(*parts), self.tokens - 1)]


def _device_only(traits: HostTraits) -> EngineCosts:
    """The engine's fitted costs without the host work of a whole step."""
    return replace(traits.engine, step_s=0.0, seq_s=0.0, token_s=0.0, request_s=0.0)


class DraftStep(StepTime):
    """One forward of a draft; one row of logits per sequence."""

    def __init__(
        self,
        spec: DraftSpec,
        laws: Laws,
        parallelism: Parallelism,
        traits: HostTraits,
        *,
        width: float = 1.0,
    ) -> None:
        self.spec = spec
        super().__init__(spec.model, laws, parallelism, traits, spec.precision, width=width, sampled=1.0)

    def _step_operators(self) -> list[Operator]:
        return _operators(self.spec, super()._step_operators(), self.parallelism.tp)

    def _launch(self, tokens: int, *, mixed: bool) -> tuple[int, float]:
        return super()._launch(tokens, mixed=mixed or self.traits.mixed_graph)


def _operators(spec: DraftSpec, plain: Sequence[Operator], tp: int) -> list[Operator]:
    law = spec.precision.linear.law
    if not spec.heads:
        extra = [
            Operator(g.name, "gemm", "gemm", "tokens", 1, n=-(-g.n // tp), k=g.k, dtype=law)
            for g in spec.projections
        ]
        return [*extra, *plain]
    count, h = spec.heads, spec.model.hidden_size
    found = [
        Operator(g.name, "gemm", "gemm", "rows", count, n=g.n, k=g.k, dtype=law) for g in spec.projections
    ]
    found.append(Operator("medusa_silu", "elementwise", "elementwise", "rows", count, width=6.0 * h))
    rows = ("lm_head", "logits_gather", "sampling")
    return found + [replace(op, count=count) for op in plain if op.name in rows]


class SpeculativeStepTime(StepTime):
    """`StepTime` of a target that checks what *drafter* guesses. Rows of a batch are sequences, as ever."""

    def __init__(self, drafter: Drafter, *parts: Any) -> None:
        super().__init__(*parts, width=drafter.width)
        self.drafter = drafter
        self.passes = drafter.passes(self.laws, self.traits)

    def seconds(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        verifying = super().seconds(num_decodes, decode_context, prefills)
        return verifying + self.drafting(num_decodes, decode_context, prefills)

    def drafting(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        """Seconds of the step in which drafts are made."""
        total = self._host_s(num_decodes + len(prefills))
        for step, times, batch in self.drafts(num_decodes, decode_context, prefills):
            total += times * step.seconds(*batch)
        return total

    def _host_s(self, sequences: int) -> float:
        drafter = self.drafter
        rounds = sequences if drafter.one_by_one else 1
        return drafter.lookup_s * sequences + drafter.host_s * drafter.forwards * rounds

    def drafts(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> list[Draft]:
        if not self.passes:
            return []
        sequences, context = num_decodes + len(prefills), decode_context
        for chunk, before in prefills:
            context += chunk + before
        one = (1, max(context // sequences, 1), ())
        (first, times), *later = self.passes
        if self.drafter.one_by_one:
            found: list[Draft] = [(first, times * num_decodes, one)] if num_decodes else []
            found += [(first, times, (0, 0, prefills))] if prefills else []
            return found + [(step, times * sequences, one) for step, times in later if times]
        found = [(first, times, (num_decodes, decode_context, prefills))]
        return found + [(step, times, (sequences, context, ())) for step, times in later if times]

    def segment(self, num_decodes: int, decode_context: int, n: int) -> NDArray[np.float64]:
        total = np.array(super().segment(num_decodes, decode_context, n)) + self._host_s(num_decodes)
        rounds = num_decodes if self.drafter.one_by_one else 1
        for step, times in self.passes:
            if times:
                rows, context = num_decodes // rounds, max(decode_context // rounds, 1)
                total += rounds * times * np.asarray(step.segment(rows, context, n))
        return total

    def breakdown(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> dict[str, float]:
        parts = super().breakdown(num_decodes, decode_context, prefills)
        parts["drafting"] = self.drafting(num_decodes, decode_context, prefills)
        parts["host"] -= parts["drafting"]
        return parts

    def _with(self, laws: Laws, traits: HostTraits) -> StepTime:
        parts = (self.parallelism, traits, self.precision, self.kernels)
        return SpeculativeStepTime(self.drafter, self.model, laws, *parts)

    @cached_property
    def plain(self) -> StepTime:
        """The same step without speculation."""
        parts = (self.parallelism, self.traits, self.precision, self.kernels)
        return StepTime(self.model, self.laws, *parts)

    def _at_peak(self) -> StepTime:
        traits = HostTraits(layer_overhead_s=0.0)
        parts = self.model, self._ideal_laws, self.parallelism, traits, self.precision
        return SpeculativeStepTime(replace(self.drafter, lookup_s=0.0, host_s=0.0), *parts)
