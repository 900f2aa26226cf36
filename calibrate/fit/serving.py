"""Fitting what engines add to their operators, on measured TTFT and TPOT.

Every cost is the sum of one number for all engines, a deviation of the system and one of its version; factors add
in the logarithm. Deviations are drawn to nought (a prior in units of the cost), so that an engine with few rows stays
near the others and a group that was not seen is predicted by its relatives. No parameter belongs to a model, a device
or a file.

The loss is Cauchy in ln(measured / predicted): some rows of any collection are not what they say they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibrate.fit.serving_terms import CaseTerms
from simulator.steptime.traits import nearest_traits

__all__ = ["COSTS", "ServingFit", "held_out_predictions", "log_errors"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """One kind of cost: where the search starts, its prior spread between engines, its unit in seconds (or 1)."""

    start: float
    prior: float
    unit: float = 1.0


COSTS: dict[str, Cost] = {
    "layer": Cost(8, 8, 1e-6),
    "step": Cost(300, 600, 1e-6),
    "seq": Cost(4, 6, 1e-6),
    "token": Cost(0.05, 0.3, 1e-6),
    "prefill_layer": Cost(30, 50, 1e-6),
    "collective": Cost(1, 2, 1e-6),
    "request": Cost(30, 30, 1e-3),
    "mixed_attention": Cost(0.1, 0.2),
}
"""Never negative; per engine and version."""
QUANTISED = Cost(1, 2, 1e-6)
FACTORS = {"gemm": (0.15, 0.07), "attention": (0.15, 0.1), "moe": (0.3, 0.3)}
"""Prior spreads of the logarithm: of all engines' kernels from the laws', of one system's from the others'."""
MOE_TOKEN = Cost(0, 60, 1e-9)
TPOT_SCALE, TTFT_SCALE = 0.12, 0.3
"""Where the loss turns from quadratic to logarithmic, in ln."""
NOISE = 0.06
"""Noise of a measured TPOT between equal set-ups, in ln: what priors are weighed against."""
TTFT_WEIGHT = 0.35
DEVIATION = 0.25
"""Share of a prior by which systems and versions may differ: of 0.5, 0.25 and 0.12 the best on groups left out."""


class ServingFit:
    """Engine costs from closed loops. *deviation* scales the priors of systems and versions."""

    def __init__(self, deviation: float = DEVIATION) -> None:
        self.deviation = deviation

    def fit(self, cases: Sequence[CaseTerms]) -> Self:
        """Find the costs that explain *cases* best."""
        self._names: dict[tuple[str, ...], int] = {}
        self._start: list[float] = []
        self._prior: list[float] = []
        self._low: list[float] = []
        self._declare(cases)
        design = _Design(cases, self._index)
        start, prior, low = np.array(self._start), np.array(self._prior), np.array(self._low)

        def residuals(x: Array) -> Array:
            return np.concatenate([_residuals(design, x), (x - start) / prior])

        found = least_squares(
            residuals,
            start,
            bounds=(low - 1e-12, np.inf),
            x_scale=prior,
            max_nfev=40,
        )
        self.values_ = found.x
        return self

    def predict(self, cases: Sequence[CaseTerms]) -> tuple[Array, Array]:
        """(TTFT, TPOT) of every case, s."""
        return _Design(cases, self._index).latencies(self.values_)

    def costs(self, family: str, entry: str) -> dict[str, Any]:
        """The fields of `EngineCosts` for traits *entry* of system *family*."""
        x = np.append(self.values_, 0.0)
        found: dict[str, Any] = {}
        for name, cost in COSTS.items():
            total = sum(x[self._index(key)] for key in _levels(name, family, entry))
            found["mixed_attention" if name == "mixed_attention" else f"{name}_s"] = (
                max(total, 0.0) * cost.unit
            )
        found["fused_quantisation_s"] = x[self._index(("quantised",))] * QUANTISED.unit
        found["attention"] = self._factor(x, "attention", "", family)
        for kind in ("gemm", "moe"):
            laws = sorted({key[1] for key in self._names if key[0] == kind and key[1]})
            found[kind] = {law: self._factor(x, kind, law, family) for law in laws}
        tokens = sorted({key[1] for key in self._names if key[0] == "moe_token"})
        found["moe_token_s"] = {
            law: max(sum(x[self._index(key)] for key in _law_levels("moe_token", law, family)), 0.0)
            * MOE_TOKEN.unit
            for law in tokens
        }
        return found

    def _factor(self, x: Array, kind: str, law: str, family: str) -> float:
        return float(np.exp(sum(x[self._index(key)] for key in _law_levels(kind, law, family))))

    def _index(self, key: tuple[str, ...]) -> int:
        """Position of a parameter; the last, always nought, for one that no row informs."""
        return self._names.get(key, -1)

    def _add(self, key: tuple[str, ...], start: float, prior: float, low: float = -np.inf) -> None:
        if key not in self._names:
            self._names[key] = len(self._start)
            self._start.append(start)
            self._prior.append(prior)
            self._low.append(low)

    def _declare(self, cases: Sequence[CaseTerms]) -> None:
        self._add(("quantised",), QUANTISED.start, QUANTISED.prior, 0.0)
        for case in cases:
            for name, cost in COSTS.items():
                shared, *own = _levels(name, case.family, case.entry)
                self._add(shared, cost.start, cost.prior, 0.0)
                for key in own:
                    self._add(key, 0.0, cost.prior * self.deviation)
            for kind, law in (("gemm", case.gemm_law), ("attention", ""), ("moe", case.moe_law)):
                if law or kind == "attention":
                    for key, prior in zip(_law_levels(kind, law, case.family), FACTORS[kind], strict=True):
                        self._add(key, 0.0, prior)
            if case.moe_law:
                for key in _law_levels("moe_token", case.moe_law, case.family):
                    self._add(key, MOE_TOKEN.start, MOE_TOKEN.prior)


def _levels(name: str, family: str, entry: str) -> list[tuple[str, ...]]:
    """The parameters that add up to cost *name*: of all engines, of the system, of an older version of it."""
    newest = nearest_traits(TRAITS_NAMES.get(family, family))
    versions = [(name, "version", entry)] if entry != newest else []
    return [(name,), (name, "system", family), *versions]


TRAITS_NAMES = {"tensorrt-llm": "trtllm"}


def _law_levels(kind: str, law: str, family: str) -> list[tuple[str, ...]]:
    return [(kind, law), (kind, law, family)]


class _Design:
    """Cases as matrices: latencies are linear in the costs once the factors are known."""

    def __init__(self, cases: Sequence[CaseTerms], index: Callable[[tuple[str, ...]], int]) -> None:
        self.terms = [
            {name: np.array([getattr(case, metric)[name] for case in cases]) for name in cases[0].tpot}
            for metric in ("ttft", "tpot")
        ]
        self.measured = [np.array([case.measured.get(m, np.nan) for case in cases]) for m in ("ttft", "tpot")]
        self.costs = {
            name: [
                index_rows(index, [_padded_levels(name, case) for case in cases], level) for level in range(3)
            ]
            for name in COSTS
        }
        self.quantised = index(("quantised",))
        laws = {"gemm": "gemm_law", "moe": "moe_law", "moe_token": "moe_law"}
        self.factors = {
            kind: [
                np.array(
                    [
                        index(_law_levels(kind, getattr(c, laws[kind]) if kind in laws else "", c.family)[i])
                        for c in cases
                    ]
                )
                for i in range(2)
            ]
            for kind in ("gemm", "attention", "moe", "moe_token")
        }

    def latencies(self, values: Array) -> tuple[Array, Array]:
        """(TTFT, TPOT), s; never below a microsecond, so that logarithms exist while searching."""
        x = np.append(values, 0.0)
        cost = {
            name: np.maximum(sum(x[rows] for rows in levels), 0.0) * COSTS[name].unit
            for name, levels in self.costs.items()
        }
        total = {kind: sum(x[rows] for rows in levels) for kind, levels in self.factors.items()}
        saved = x[self.quantised] * QUANTISED.unit
        found = []
        for terms in self.terms:
            seconds = terms["gemm"] * np.exp(total["gemm"]) - saved * terms["quantised"]
            seconds = seconds + terms["moe"] * np.exp(total["moe"]) + terms["other"] + terms["rows_ops"]
            seconds += np.maximum(total["moe_token"], 0.0) * MOE_TOKEN.unit * terms["moe_token"]
            attention = terms["attention"] + cost["mixed_attention"] * terms["mixed_attention"]
            seconds += attention * np.exp(total["attention"])
            for name in ("layer", "step", "seq", "token", "prefill_layer", "collective"):
                seconds += cost[name] * terms[name]
            found.append(np.maximum(seconds, 1e-6))
        return found[0] + cost["request"], found[1]


def _padded_levels(name: str, case: CaseTerms) -> list[tuple[str, ...]]:
    levels = _levels(name, case.family, case.entry)
    return [*levels, *[("none",)] * (3 - len(levels))]


def index_rows(
    index: Callable[[tuple[str, ...]], int], levels: list[list[tuple[str, ...]]], level: int
) -> NDArray[np.int64]:
    """Parameter of each case at one level of the sum."""
    return np.array([index(keys[level]) for keys in levels])


def log_errors(design_measured: Array, predicted: Array) -> Array:
    """ln(predicted / measured)."""
    return np.asarray(np.log(predicted / design_measured))


def _residuals(design: _Design, x: Array) -> Array:
    ttft, tpot = design.latencies(x)
    measured_ttft, measured_tpot = design.measured
    known = np.isfinite(measured_ttft)
    first = _cauchy(log_errors(measured_ttft[known], ttft[known]), TTFT_SCALE) * TTFT_WEIGHT
    return np.concatenate([_cauchy(log_errors(measured_tpot, tpot), TPOT_SCALE), first]) / NOISE


def _cauchy(error: Array, scale: float) -> Array:
    """The residual whose square is the Cauchy loss of *error*."""
    return np.asarray(np.sign(error) * scale * np.sqrt(np.log1p((error / scale) ** 2)))


def held_out_predictions(
    cases: Sequence[CaseTerms], parts: Sequence[Any], deviation: float = DEVIATION
) -> tuple[Array, Array]:
    """(TTFT, TPOT) of every case by a fit that saw no case of the same part."""
    labels = np.array([str(part) for part in parts])
    ttft, tpot = np.zeros(len(cases)), np.zeros(len(cases))
    for part in np.unique(labels):
        unseen = np.flatnonzero(labels == part)
        seen = [case for case, label in zip(cases, labels, strict=True) if label != part]
        fitted = ServingFit(deviation).fit(seen)
        ttft[unseen], tpot[unseen] = fitted.predict([cases[i] for i in unseen.tolist()])
    return ttft, tpot
