"""A measured closed loop as sums: what each term of a step contributes to its TTFT and TPOT.

The schedule of a closed loop does not depend on step times (`calibrate.serving.schedule`), and the costs an engine adds
are linear. So one pass over the schedule leaves a dozen sums per latency, from which any set of costs is evaluated in
microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.serving.case import Case
from calibrate.serving.schedule import Schedule, record_schedule
from simulator.steptime import StepTime
from simulator.steptime.engine_costs import QUANTISED, moe_law

__all__ = ["CaseTerms", "case_terms"]

Array = NDArray[np.float64]
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True)
class CaseTerms:
    """Weighted sums of one case by term, for ``ttft`` and ``tpot``, and what selects its parameters."""

    ttft: dict[str, float]
    tpot: dict[str, float]
    gemm_law: str
    moe_law: str
    family: str
    entry: str
    group: str
    measured: dict[str, float]


def case_terms(case: Case) -> CaseTerms:
    """The terms of *case*, with the laws as they are and no engine costs."""
    schedule, resolved = record_schedule(case), case.resolve()
    step = resolved.steptime
    bare = StepTime(step.model, step.laws, step.parallelism, None, step.precision)
    terms = _terms(schedule, bare, step)
    ttft, tpot = schedule.w_ttft * schedule.count, schedule.w_tpot * schedule.count
    native_fp4 = step.laws.peak_flops("fp4") > 2 * step.laws.peak_flops("bf16")
    experts = step.precision.experts.law if step.model.is_moe else ""
    return CaseTerms(
        ttft={name: float(ttft @ term) for name, term in terms.items()},
        tpot={name: float(tpot @ term) for name, term in terms.items()},
        gemm_law=step.precision.linear.law,
        moe_law=moe_law(experts, native_fp4),
        family=case.system,
        entry=case.traits or case.system,
        group="/".join(case.group),
        measured=dict(case.measured),
    )


def _terms(schedule: Schedule, bare: StepTime, step: StepTime) -> dict[str, Array]:
    """Each term per iteration of every run, float64[runs]."""
    decodes = schedule.decodes
    prompts = np.array([len(prefills) for prefills in schedule.prefills])
    tokens = decodes + np.array([sum(chunk for chunk, _ in prefills) for prefills in schedule.prefills])
    mixed, rows = prompts > 0, decodes + prompts
    padded = np.array([step.padded(int(t), mixed=bool(m)) for t, m in zip(tokens, mixed, strict=True)])
    middle = schedule.context + (schedule.count - 1) * decodes / 2
    pairs = zip(decodes.tolist(), middle.tolist(), strict=True)
    attention = np.array([bare.decode_attention(n, int(context)) if n else 0.0 for n, context in pairs])
    attention += np.array([bare.prefill_attention(p) if p else 0.0 for p in schedule.prefills])
    one = np.ones(len(tokens))
    terms = {"rows_ops": _operators(bare, "rows", rows), **_token_operators(bare, padded)}
    terms |= {"attention": attention, "mixed_attention": attention * (mixed & (decodes > 0))}
    terms |= {"layer": one * bare.model.num_layers, "step": one, "seq": rows * one, "token": tokens * one}
    terms |= {"prefill_layer": mixed * one * bare.model.num_layers}
    return terms | _counts(bare, one, padded)


def _counts(bare: StepTime, one: Array, padded: Array) -> dict[str, Array]:
    """How often a step does what costs a constant each time."""
    body = [operator for operator in bare.operators if operator.axis != "rows"]
    collectives = sum(o.count for o in body if o.kind in COLLECTIVES)
    quantised = sum(o.count for o in body if o.kind == "gemm" and o.dtype in QUANTISED)
    routed = sum(o.count / (o.experts[3] * o.experts[4]) for o in body if o.kind == "moe")
    return {"collective": one * collectives, "quantised": one * quantised, "moe_token": padded * routed}


def _token_operators(bare: StepTime, padded: Array) -> dict[str, Array]:
    kinds = {"gemm": "gemm", "moe": "moe"}
    found: dict[str, Array] = {name: np.zeros(len(padded)) for name in ("gemm", "moe", "other")}
    unique, inverse = np.unique(padded, return_inverse=True)
    for operator in bare.operators:
        if operator.axis != "rows":
            seconds = bare.operator_seconds(operator, unique.astype(float))[inverse]
            found[kinds.get(operator.kind, "other")] += seconds
    return found


def _operators(bare: StepTime, axis: str, counts: NDArray[Any]) -> Array:
    unique, inverse = np.unique(counts, return_inverse=True)
    total = np.zeros(len(unique))
    for operator in bare.operators:
        if operator.axis == axis:
            total += bare.operator_seconds(operator, unique.astype(float))
    return np.asarray(total[inverse])
