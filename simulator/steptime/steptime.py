"""How long one forward pass takes.

    device = Σ operators(padded tokens) + attention(decodes) + attention(prefills) + layers · overhead
    device = max(device, launches)                 a step waits for its kernels to be launched
    step   = max(device, host) or device + host    with or without asynchronous scheduling
    step  += what the engine adds, fitted to serving data (`engine_costs.py`)

Everything that depends on the number of tokens alone is a table read as Python floats; attention is read from
tables of knots (`tables.py`). So a step costs about a microsecond, whatever the laws cost.

Prefill and decode attention of one batch are the sum of both times the system's ``mixed_attention_factor``:
one variable-length kernel gives the decoding rows whole query tiles and no split over their context.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil, frexp
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulator.compiled.attributes import attributes_of, mypyc_attr, set_attributes
from simulator.models import ModelSpec, Precision
from simulator.steptime.attention import StepAttention
from simulator.steptime.context_parallel import ContextParallelAttention
from simulator.steptime.decode import DecodeTimes
from simulator.steptime.kernels import FUSED, Kernels
from simulator.steptime.materialised import MaterialisedAttention
from simulator.steptime.operator_times import OperatorTimes
from simulator.steptime.operators import Operator, step_operators
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.prefill import PrefillTimes
from simulator.steptime.protocol import Laws
from simulator.steptime.roofline import RooflineLaws
from simulator.steptime.shared import shared
from simulator.steptime.tables import KNOTS, read_curve, read_curve_many
from simulator.steptime.traits import HostTraits

__all__ = ["StepTime"]

Array: TypeAlias = NDArray[np.float64]
Prefills = Sequence[tuple[int, int]]
Draft = tuple["StepTime", int, tuple[int, int, Prefills]]
_DecodeEntry = tuple[float, float, float, "array[float]"]

SCALAR_STEPS = 32
"""Segments shorter than this are evaluated in Python, longer ones by numpy."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StepTime:
    """Seconds of a forward of *model* on the device that *laws* describe.

    A batch has ``num_decodes`` rows with one new token each that attend to ``decode_context`` tokens
    together (new ones included), and prefills as (chunk, tokens of context before it). With attention
    data parallelism the batch is that of the whole replica, spread evenly. *precision* defaults to the
    published one. With speculation each decoding row has *width* new tokens, which read its KV together, and
    *sampled* of them get logits; both may be means.
    """

    def __init__(
        self,
        model: ModelSpec,
        laws: Laws,
        parallelism: Parallelism | None = None,
        traits: HostTraits | None = None,
        precision: Precision | None = None,
        kernels: Kernels = FUSED,
        *,
        width: float = 1.0,
        sampled: float | None = None,
    ) -> None:
        self.model, self.laws = model, laws
        self.width = width
        self.sampled = width if sampled is None else sampled
        self.parallelism = parallelism or Parallelism()
        self.traits = traits or HostTraits()
        self.precision = precision or model.native
        self.kernels = kernels
        self._ideal_laws = RooflineLaws(laws)
        self._engine = self.traits.engine
        prompt_launch: float = model.num_layers * self._engine.prefill_layer_s
        self._exposed = prompt_launch + self._engine.step_s, self._engine.seq_s, self._engine.token_s
        self._host = self.traits.per_step_s, self.traits.per_seq_s, self.traits.per_new_token_s
        """Seconds of a step with prompts, of a row and of a new token, on the CPU."""
        self._ideal: StepTime | None = None
        self.operators = self._step_operators()
        overhead = model.num_layers * self.traits.layer_overhead_s
        self._operator_times = shared(
            OperatorTimes, laws, self.operators, self._engine, self.parallelism.dp, overhead
        )
        attention = laws, model, self.precision, self.parallelism, kernels.flash_attention
        self._attention, self._decode_times, self._prefill_attention = shared(
            _attention_times, *attention, self._engine.attention, width
        )
        self._decodes: dict[int, _DecodeEntry] = {}
        self._mixed_bases: dict[int, tuple[float, float]] = {}
        self._alone: Array = np.empty(0)

    def _step_operators(self) -> list[Operator]:
        """All operators of a forward but attention."""
        operators = step_operators(self.model, self.precision, self.parallelism)
        return self.kernels.of(operators, -(-self.model.vocab_size // self.parallelism.tp))

    def __getstate__(self) -> dict[str, Any]:
        return attributes_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)

    def seconds(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        """Duration of one forward."""
        if prefills:
            return self._mixed(num_decodes, decode_context, prefills)
        base, least, extra, knots = self._decodes.get(num_decodes) or self._decode_batch(num_decodes)
        # read_curve, written out: this is the innermost line of a simulation
        mantissa, exponent = frexp(decode_context)
        place = (mantissa - 0.5) * (2 * KNOTS)
        step = int(place)
        at = (exponent - 1) * KNOTS + step
        if decode_context < num_decodes or at + 1 >= len(knots):
            self._decode_batch(num_decodes, decode_context)
            return StepTime.seconds(self, num_decodes, decode_context)
        low = knots[at]
        device = base + (low + (place - step) * (knots[at + 1] - low))
        return (device if device > least else least) + extra

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float] | Array:
        """Durations of *n* decode iterations between which every context grows by one token."""
        last = decode_context + (n - 1) * num_decodes
        entry = self._decodes.get(num_decodes) or self._decode_batch(num_decodes)
        if decode_context < num_decodes or last >= 2 ** (len(entry[3]) // KNOTS - 1):
            self._decode_batch(num_decodes, decode_context)  # is told what is wrong, if anything
            entry = self._decode_batch(num_decodes, last)
        base, least, extra, knots = entry
        if n < SCALAR_STEPS:
            durations = []
            for context in range(decode_context, last + 1, num_decodes):
                mantissa, exponent = frexp(context)  # `seconds` without its checks
                place = (mantissa - 0.5) * (2 * KNOTS)
                step = int(place)
                at = (exponent - 1) * KNOTS + step
                low = knots[at]
                device = base + (low + (place - step) * (knots[at + 1] - low))
                durations.append((device if device > least else least) + extra)
            return durations
        if num_decodes == 1:
            return self._one_row(last)[decode_context - 1 : last]
        contexts: Array = np.arange(decode_context, last + 1, num_decodes, dtype=np.float64)
        return np.asarray(np.maximum(base + read_curve_many(knots, contexts), least) + extra)

    def _one_row(self, last: int) -> Array:
        """Durations of a step with one decode at every context from 1 to *last*, or beyond."""
        if len(self._alone) < last:
            base, least, extra, knots = self._decodes[1]
            reach: int = min(2 * last, 2 ** (len(knots) // KNOTS - 1) - 1)
            contexts: Array = np.arange(1, reach + 1, dtype=np.float64)
            self._alone = np.maximum(base + read_curve_many(knots, contexts), least) + extra
        return self._alone

    def _decode_batch(self, num_decodes: int, context: int | None = None) -> _DecodeEntry:
        """(operators, least duration, serial host, attention over Σ context) of a decode-only batch.

        The table of attention reaches the model's full context for every sequence, and *context*.
        """
        if num_decodes < 1:
            raise ValueError(f"a step needs at least one row, got {num_decodes} decodes and no prefill")
        if context is not None and context < num_decodes:
            raise ValueError(
                f"decode_context {context} must be at least one token for each of {num_decodes} rows"
            )
        traits = self.traits
        new_tokens = self.new_tokens(num_decodes)
        tokens, launch = self._launch(new_tokens, mixed=False)
        base = self._operator_times.tokens(tokens) + self._operator_times.rows(self.logits_rows(num_decodes))
        host = traits.host_s(num_decodes, new_tokens)
        least, extra = (max(launch, host), 0.0) if traits.overlap else (launch, host)
        extra += self._engine.exposed_s(num_decodes, new_tokens)
        entry = base, least, extra, self._decode_times.curve(num_decodes, context or 0)
        self._decodes[num_decodes] = entry
        return entry

    def new_tokens(self, num_decodes: int) -> int:
        """Tokens that so many decoding rows compute."""
        return num_decodes if self.width == 1 else ceil(num_decodes * self.width)

    def logits_rows(self, num_decodes: int) -> int:
        """Rows of logits that so many decoding rows need."""
        return num_decodes if self.sampled == 1 else ceil(num_decodes * self.sampled)

    def _launch(self, tokens: int, *, mixed: bool) -> tuple[int, float]:
        """(tokens after padding, CPU time to launch) of a batch of *tokens*."""
        traits, layers = self.traits, self.model.num_layers
        if mixed:
            tokens = -(-tokens // self.parallelism.pcp)
        if tokens > traits.graph_max_tokens or (mixed and not traits.mixed_graph):
            return tokens, layers * traits.eager_layer_s
        padded = traits.graph_sizes[bisect_left(traits.graph_sizes, tokens)]
        return padded, layers * traits.piecewise_layer_s if mixed else 0.0

    def _mixed(self, num_decodes: int, decode_context: int, prefills: Prefills) -> float:
        traits = self.traits
        rows = num_decodes + len(prefills)
        new_tokens = num_decodes
        logits = rows
        if self.width != 1:
            new_tokens = self.new_tokens(num_decodes)
            logits = self.logits_rows(num_decodes) + len(prefills)
        for chunk, _ in prefills:
            new_tokens += chunk
        base, launch = self._mixed_bases.get(new_tokens) or self._mixed_base(new_tokens)
        attention = self._prefill_attention.seconds(prefills)
        if num_decodes:
            decoding = self.decode_attention(num_decodes, decode_context)
            attention = (attention + decoding) * traits.mixed_attention_factor
        device = base + self._operator_times.rows(logits) + attention
        if device < launch:
            device = launch
        step_s, row_s, token_s = self._host
        host = step_s + row_s * rows + token_s * new_tokens
        step_s, row_s, token_s = self._exposed
        exposed = step_s + row_s * rows + token_s * new_tokens
        if traits.overlap:
            return (device if device > host else host) + exposed
        return device + host + exposed

    def _mixed_base(self, new_tokens: int) -> tuple[float, float]:
        """(operators, CPU time to launch) of a batch of *new_tokens* with prefills."""
        tokens, launch = self._launch(new_tokens, mixed=True)
        self._mixed_bases[new_tokens] = entry = self._operator_times.tokens(tokens), launch
        return entry

    def decode_attention(self, num_decodes: int, decode_context: int) -> float:
        """Seconds of the attention of decoding sequences, over all layers."""
        knots = (self._decodes.get(num_decodes) or self._decode_batch(num_decodes))[3]
        if not num_decodes <= decode_context < 2 ** (len(knots) // KNOTS - 1):
            knots = self._decode_batch(num_decodes, decode_context)[3]
        return read_curve(knots, decode_context)

    def recast(
        self, num_decodes: int, decode_context: int, prefills: Prefills = ()
    ) -> tuple[int, int, Prefills]:
        """What a batch computes: itself, where keys and values are kept."""
        return num_decodes, decode_context, prefills

    def prefill_attention(self, prefills: Prefills) -> float:
        """Seconds of the attention of prompt chunks, over all layers."""
        return self._prefill_attention.seconds(prefills)

    def padded(self, tokens: int, *, mixed: bool) -> int:
        """Tokens that a batch of *tokens* is padded to."""
        return self._launch(tokens, mixed=mixed)[0]

    def operator_seconds(self, operator: Operator, counts: Array) -> Array:
        """Seconds of all executions of *operator* in a step with each of *counts* tokens or rows."""
        return self._operator_times.seconds(operator, counts)

    def breakdown(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> dict[str, float]:
        """Seconds by operator family; ``host`` is what the device waits for. Sums to `seconds`."""
        new_tokens = self.new_tokens(num_decodes) + sum(chunk for chunk, _ in prefills)
        rows = self.logits_rows(num_decodes) + len(prefills)
        tokens, _ = self._launch(new_tokens, mixed=bool(prefills))
        parts: dict[str, float] = {}
        for operator in self.operators:
            count = np.array([float(rows if operator.axis == "rows" else tokens)])
            time = float(self.operator_seconds(operator, count)[0])
            parts[operator.family] = parts.get(operator.family, 0.0) + time
        factor = self.traits.mixed_attention_factor if num_decodes and prefills else 1.0
        if prefills:
            parts["prefill_attention"] = factor * self.prefill_attention(prefills)
        if num_decodes:
            parts["decode_attention"] = factor * self.decode_attention(num_decodes, decode_context)
        parts["layer_overhead"] = self.model.num_layers * self.traits.layer_overhead_s
        parts["host"] = self.seconds(num_decodes, decode_context, prefills) - sum(parts.values())
        return parts

    def drafts(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> list[Draft]:
        """The forwards of the draft that belong to the step: what runs, how often, on which batch."""
        return []

    def with_laws(self, laws: Laws) -> StepTime:
        """The same step on other laws, for instance drawn from their uncertainty."""
        return self._with(laws, self.traits)

    def with_traits(self, traits: HostTraits) -> StepTime:
        """The same step on another host."""
        return self._with(self.laws, traits)

    def _with(self, laws: Laws, traits: HostTraits) -> StepTime:
        return StepTime(self.model, laws, self.parallelism, traits, self.precision, self.kernels)

    @property
    def ideal(self) -> StepTime:
        """The same step at peak rates: no padding, no launches, no host."""
        if self._ideal is None:
            self._ideal = self._at_peak()
        return self._ideal

    def _at_peak(self) -> StepTime:
        traits = HostTraits(layer_overhead_s=0.0)
        return StepTime(self.model, self._ideal_laws, self.parallelism, traits, self.precision)

    def floor(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        """Seconds below which no such step can be: every operator at peak FLOPs or bandwidth."""
        return self.ideal.seconds(num_decodes, decode_context, prefills)


def _attention_times(
    laws: Laws,
    model: ModelSpec,
    precision: Precision,
    parallelism: Parallelism,
    flash: bool,
    scale: float,
    width: float,
) -> tuple[StepAttention, DecodeTimes, PrefillTimes]:
    """The law of a step's attention, and its tables for decodes and for prompts."""
    kind = StepAttention if flash else MaterialisedAttention
    if parallelism.context_ranks > 1:
        kind = ContextParallelAttention
    attention = kind(model, precision, parallelism, laws, RooflineLaws(laws), scale, width)
    return (
        attention,
        DecodeTimes(model, attention, parallelism.dp),
        PrefillTimes(model, attention, parallelism.dp),
    )
