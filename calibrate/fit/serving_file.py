"""From folders of closed-loop measurements to ``engine_costs.yaml``: fit, held-out errors, file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from calibrate.fit.law_fit import error_summary
from calibrate.fit.serving import ServingFit, held_out_predictions
from calibrate.fit.serving_terms import CaseTerms, case_terms
from calibrate.serving.case import Case
from simulator.errors import InputError, SimError

__all__ = ["fit_engine_costs", "gather_terms", "seen_spreads", "write_engine_costs"]

Array = NDArray[np.float64]
FOLDS = 5
SOURCE = (
    "fitted to {rows} closed-loop measurements of vLLM, TensorRT-LLM and SGLang on H100, H200, B200 and GB200 "
    "(ai-dynamo/aiconfigurator @095f58a51c, silicon_sample.csv)"
)


def gather_terms(cases: Sequence[Case], progress: Callable[[], None] | None = None) -> list[CaseTerms]:
    """The terms of every case that can be scheduled."""
    found = []
    for case in cases:
        try:
            found.append(case_terms(case))
        except SimError:
            continue  # counted by `sim validate serving`, which says why
        finally:
            if progress is not None:
                progress()
    if not found:
        raise InputError("data", "holds no closed-loop measurement that can be scheduled")
    return found


def fit_engine_costs(terms: Sequence[CaseTerms], date: str) -> dict[str, Any]:
    """The content of ``engine_costs.yaml``. Same terms, same content."""
    fitted = ServingFit().fit(terms)
    groups = [case.group for case in terms]
    by_group = held_out_predictions(terms, groups)
    by_fold = held_out_predictions(terms, np.random.default_rng(0).integers(0, FOLDS, len(terms)).tolist())
    systems = {case.entry: case.family for case in terms}
    return {
        "source": SOURCE.format(rows=len(terms)),
        "date": date,
        "held_out": {
            f"{FOLDS}-fold by configuration": _errors(terms, by_fold),
            "leave one (gpu, system, model) out": _errors(terms, by_group),
        },
        "systems": {
            entry: _entry(fitted, terms, by_group, by_fold, family, entry)
            for entry, family in sorted(systems.items())
        },
    }


def _entry(
    fitted: ServingFit,
    terms: Sequence[CaseTerms],
    by_group: tuple[Array, Array],
    by_fold: tuple[Array, Array],
    family: str,
    entry: str,
) -> dict[str, Any]:
    """Costs of one traits entry, rounded to four digits, and how far it is off on groups it has not seen."""
    costs = {name: _rounded(value) for name, value in fitted.costs(family, entry).items()}
    mine = np.array([case.entry == entry for case in terms])
    rows = int(mine.sum())
    costs["spread"] = _spreads(terms, by_group, mine)
    costs["seen"] = seen_spreads(terms, by_fold, entry)
    return costs | {"source": f"engine costs fitted to closed-loop measurements ({rows} rows of this entry)"}


METRICS = ("ttft", "tpot")
PRIOR_ROWS = 10
LEAST_SPREAD = 0.03
"""Repeats of one set-up differ by so much (facts of the collection: 1 to 3 % for TPOT)."""


def _gpu_and_model(case: CaseTerms) -> str:
    gpu, _, model = case.group.split("/")
    return f"{gpu}/{model}"


def seen_spreads(
    terms: Sequence[CaseTerms], by_fold: tuple[Array, Array], entry: str
) -> dict[str, dict[str, float]]:
    """Spread of every (gpu, model) of traits *entry*, from predictions that had not seen the configuration."""
    mine = np.array([case.entry == entry for case in terms])
    names = np.array([_gpu_and_model(case) for case in terms])
    pooled = _spreads(terms, by_fold, mine)
    found = {}
    for name in np.unique(names[mine]):
        use = mine & (names == name)
        found[str(name)] = _shrunk(_spreads(terms, by_fold, use), pooled, int(use.sum()))
    return found


def _shrunk(own: dict[str, float], pooled: dict[str, float], rows: int) -> dict[str, float]:
    """A spread of few rows says little: it counts as many rows as it has against `PRIOR_ROWS` of the whole entry."""
    weight = rows / (rows + PRIOR_ROWS)
    return {
        name: _rounded((weight * own[name] ** 2 + (1 - weight) * pooled[name] ** 2) ** 0.5) for name in own
    }


def _spreads(
    terms: Sequence[CaseTerms], predicted: tuple[Array, Array], mine: NDArray[np.bool_]
) -> dict[str, float]:
    """Spread of the step (TPOT) and of TTFT; TTFT is never known better than the steps it is made of."""
    ttft, tpot = (
        _spread(terms, values, metric, mine) for metric, values in zip(METRICS, predicted, strict=True)
    )
    step = max(tpot, LEAST_SPREAD)
    return {"step": step, "ttft": max(ttft, step)}


def _measured(terms: Sequence[CaseTerms], metric: str) -> Array:
    return np.array([case.measured.get(metric, np.nan) for case in terms])


def _errors(terms: Sequence[CaseTerms], predicted: tuple[Array, Array]) -> dict[str, dict[str, Any]]:
    """Mean, median and p90 of the absolute relative error by metric and kind of model."""
    moe = np.array([bool(case.moe_law) for case in terms])
    found: dict[str, dict[str, Any]] = {}
    for metric, values in zip(METRICS, predicted, strict=True):
        measured = _measured(terms, metric)
        for kind, chosen in (("dense", ~moe), ("moe", moe)):
            use = chosen & np.isfinite(measured)
            if use.any():
                mean, median, p90 = error_summary(values[use] / measured[use] - 1.0)
                errors = {"mean_ape": mean, "median_ape": median, "p90_ape": p90}
                found[f"{metric} {kind}"] = {"rows": int(use.sum())} | {
                    k: _rounded(v) for k, v in errors.items()
                }
    return found


def _spread(terms: Sequence[CaseTerms], predicted: Array, metric: str, mine: NDArray[np.bool_]) -> float:
    """Standard deviation of ln(measured / predicted) that gives a normal the observed 90th percentile of its size."""
    measured = _measured(terms, metric)
    use = mine & np.isfinite(measured)
    if not use.any():
        use = np.isfinite(measured)
    size = np.abs(np.log(measured[use] / predicted[use]))
    # the level at which a new value lies below with probability 0.9, for as few values as there are
    level = min(0.9 * (len(size) + 1) / len(size), 1.0)
    return float(_rounded(float(np.quantile(size, level)) / NORMAL_90))


NORMAL_90 = 1.6449
"""90 % of a standard normal lie within this of nought."""


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return float(f"{value:.4g}")


def write_engine_costs(content: dict[str, Any], path: Path) -> None:
    """Write the file that `simulator.steptime.engine_costs` reads."""
    head = (
        "# What engines add to their operators; see simulator/steptime/engine_costs.py. Seconds and factors.\n"
        "# Written by `sim calibrate fit-serving`; not edited by hand.\n"
    )
    path.write_text(head + yaml.safe_dump(content, sort_keys=False, width=110), encoding="utf-8")
