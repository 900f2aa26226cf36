"""From what is stated of speculation to what it means: who drafts, what that takes, and what the policy must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.errors import ConfigurationError
from simulator.memory import draft_bytes_per_gpu
from simulator.models import ModelSpec, Precision, dtype, load_model
from simulator.models.drafts import DraftSpec, draft_layer, draft_model, medusa_heads
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.system import System
from simulator.speculation.option import LOOKUP_US, MTP_ACCEPTANCE, MTP_SOURCE, Speculation
from simulator.steptime import Parallelism
from simulator.steptime.speculative import Drafter

__all__ = ["SpeculationPlan", "plan_speculation"]

KEEPS_KV = ("draft", "eagle", "mtp")
"""Methods whose draft has KV of its own, which the drafted tokens write."""
READS_HIDDEN_STATES = ("eagle", "mtp")


@dataclass(frozen=True)
class SpeculationPlan:
    """*drafting* for the policy, *drafter* for the clock, *memory* for the budget:
    B per GPU of weights and of KV per token.
    """

    speculation: Speculation
    drafting: Drafting
    drafter: Drafter
    memory: tuple[float, float]
    chosen: list[str]
    host_text: str = ""

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a step yields per sequence."""
        return self.drafting.tokens_per_step

    @property
    def provenance(self) -> list[str]:
        """What the numbers of the speculation rest on, one line each."""
        stated, rates = self.speculation, self.speculation.acceptance
        rates = MTP_ACCEPTANCE if rates is None else rates
        shown = "/".join(f"{rate:g}" for rate in rates) if isinstance(rates, tuple) else f"{rates:g}"
        source = MTP_SOURCE if stated.acceptance is None else "stated"
        found = [
            f"speculation: {stated.method}, {stated.depth} tokens, acceptance {shown} ({source}): "
            f"{self.tokens_per_step:.3g} tokens per step"
        ]
        if stated.method == "ngram":
            us, source = (LOOKUP_US, "assumed") if stated.lookup_us is None else (stated.lookup_us, "stated")
            return [*found, f"look-up of n-grams: {us:g} µs per sequence and step ({source})"]
        spec = self.drafter.spec
        assert spec is not None
        weights = f"{spec.model.name}, {spec.parameters / 1e9:.3g} B parameters in {spec.precision.weights}"
        return [*found, f"draft: {weights}; host work between its forwards: {self.host_text}"]


def plan_speculation(
    stated: Speculation,
    model: ModelSpec,
    precision: Precision,
    parallelism: Parallelism,
    system: System,
    check_dtype: Callable[[str], None],
) -> SpeculationPlan:
    """What *stated* means for *model* on *system*. Raises `ConfigurationError` for what contradicts them.

    *check_dtype* is called with the format of a draft's weights.
    """
    _check_system(stated, parallelism, system)
    spec = _spec(stated, model, precision, system)
    tp = stated.draft_tensor_parallel_size or parallelism.tp
    if tp not in (1, parallelism.tp):
        raise ConfigurationError(
            f"speculation: draft_tensor_parallel_size {tp} must be 1 or the target's {parallelism.tp}"
        )
    own = Parallelism(tp) if stated.method == "draft" else replace(parallelism, pp=1)
    if spec is not None:
        check_dtype(spec.precision.weights)
        _check_heads(spec, tp)
    width = 1 + stated.checked
    drafting = Drafting(
        stated.rates,
        width,
        1.0 if stated.match is None else stated.match,
        lookahead=stated.depth if stated.method in KEEPS_KV else 0,
        drops_last_hit=stated.method in READS_HIDDEN_STATES,
    )
    lookup_us = LOOKUP_US if stated.lookup_us is None else stated.lookup_us
    lookup_s = lookup_us * 1e-6 if stated.method == "ngram" else 0.0
    host_us, host_text = _host(stated, system)
    drafter = Drafter(
        spec, own, stated.depth, drafting.mean_width, lookup_s, host_us * 1e-6, system.drafts_one_by_one
    )
    memory = (0.0, 0.0) if spec is None else draft_bytes_per_gpu(spec, own, precision.kv)
    return SpeculationPlan(stated, drafting, drafter, memory, _chosen(stated, spec), host_text)


def _host(stated: Speculation, system: System) -> tuple[float, str]:
    """Host time of a forward of the draft, µs, and what it rests on."""
    if stated.host_us is not None:
        return stated.host_us, f"{stated.host_us:g} µs for each (stated)"
    known = system.draft_host_us.get(stated.method)
    if known is None:
        return 0.0, "not counted"
    return known, f"{known:g} µs for each ({system.draft_host_source})"


def _chosen(stated: Speculation, spec: DraftSpec | None) -> list[str]:
    found = []
    if stated.method == "mtp" and stated.tokens is None:
        found.append(f"speculation.tokens: {stated.depth}")
    if stated.acceptance is None:
        found.append(f"speculation.acceptance: {MTP_ACCEPTANCE} ({MTP_SOURCE})")
    if spec is not None and stated.dtype is None:
        found.append(f"speculation.dtype: {spec.precision.weights}")
    return found


def _check_system(stated: Speculation, parallelism: Parallelism, system: System) -> None:
    if not system.speculation:
        raise ConfigurationError(
            f"speculation: {system.name} {system.version} has no speculative decoding that is modelled"
        )
    if stated.method not in system.speculation:
        raise ConfigurationError(
            f"speculation: {system.name} {system.version} does not draft by {stated.method}; "
            f"it has {', '.join(system.speculation)}"
        )
    if stated.tree is not None and not system.draft_trees:
        raise ConfigurationError(
            f"speculation: tree {stated.tree}: {system.name} checks chains of drafts only"
        )
    if parallelism.pp > 1:
        raise ConfigurationError(
            f"speculation: pipeline_parallel_size {parallelism.pp}: drafting across pipeline stages is not modelled"
        )


def _spec(stated: Speculation, model: ModelSpec, precision: Precision, system: System) -> DraftSpec | None:
    formats = (
        precision if stated.dtype is None else replace(precision, weights=dtype(stated.dtype).name, moe=None)
    )
    match stated.method:
        case "draft":
            return _draft_model(stated, model, precision, system)
        case "eagle":
            return draft_layer(model, formats, "EAGLE")
        case "mtp":
            if not model.mtp_layers:
                raise ConfigurationError(
                    f"speculation: {model.name} was published without a layer for multi-token prediction"
                )
            return draft_layer(model, formats, "MTP")
        case "medusa":
            return medusa_heads(model, formats, stated.depth)
        case "ngram":
            return None


def _draft_model(stated: Speculation, model: ModelSpec, precision: Precision, system: System) -> DraftSpec:
    draft = load_model(stated.model or "")
    if abs(draft.vocab_size - model.vocab_size) > system.draft_vocabulary_slack:
        raise ConfigurationError(
            f"speculation: {draft.name} has a vocabulary of {draft.vocab_size} tokens and {model.name} one of "
            f"{model.vocab_size}; {system.name} needs the same"
        )
    if draft.active_parameters >= model.active_parameters:
        raise ConfigurationError(
            f"speculation: the draft {draft.name} ({draft.active_parameters / 1e9:.3g} B parameters per token) is not "
            f"smaller than {model.name} ({model.active_parameters / 1e9:.3g} B)"
        )
    weights = dtype(stated.dtype).name if stated.dtype else draft.native.weights
    moe = draft.native.moe if stated.dtype is None else None
    return draft_model(draft, Precision(weights, precision.kv, moe, draft.native.head))


def _check_heads(spec: DraftSpec, tp: int) -> None:
    if spec.model.layers and spec.model.num_attention_heads % tp:
        raise ConfigurationError(
            f"speculation: {spec.model.num_attention_heads} attention heads of {spec.model.name} cannot be cut in "
            f"{tp}; state draft_tensor_parallel_size 1"
        )
