"""Service level objectives: what must hold, how well a run holds it, and what the literature asks for.

An objective is written METRIC:STATISTIC:MILLISECONDS, ``ttft:p99:2000`` or ``tpot:mean:50``; or, where a share of the
requests must meet several limits at once (DistServe's attainment), ``attainment:90:ttft=250,tpot=100``. A request
that was rejected, lost or never finished counts as infinitely late in every metric, so turning requests away never
helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from simulator.cluster import ClusterResult
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.results import FINISHED, Records
from simulator.simulation import Result

__all__ = ["SLO_METRICS", "Attained", "Objective", "Slo", "parse_slo", "slo_presets"]

SLO_METRICS = ("ttft", "tpot", "itl", "e2el", "queue_time", "normalized_latency")
PER_REQUEST = tuple(name for name in SLO_METRICS if name != "itl")
STATISTICS = ("mean", "median", "max")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """One demand. *limits* in ms by metric; more than one metric only where *share* of the requests must meet all."""

    limits: tuple[tuple[str, float], ...]
    statistic: str
    """``mean``, ``median``, ``max``, ``p99``, or ``attainment``."""
    share: float | None = None
    """Share of the requests, 0 to 1, of an ``attainment`` objective."""

    def __str__(self) -> str:
        if self.share is not None:
            limits = ",".join(f"{name}={limit:g}" for name, limit in self.limits)
            return f"attainment:{100 * self.share:g}:{limits}"
        metric, limit = self.limits[0]
        return f"{metric}:{self.statistic}:{limit:g}"

    @property
    def wanted(self) -> float:
        """The bound: ms, or the share of requests of an ``attainment`` objective."""
        return self.limits[0][1] if self.share is None else self.share

    @property
    def wanted_attainment(self) -> float | None:
        """Share of requests that must be within the limits; None for a mean."""
        if self.share is not None:
            return self.share
        percentile = _percentile(self.statistic)
        return None if percentile is None else percentile / 100

    def at(self, ratio: float) -> float:
        """The value that is *ratio* times the bound: ms, or the share that is so much smaller."""
        return self.wanted * ratio if self.share is None else self.wanted / ratio

    def looser(self, ratio: float) -> Objective:
        """What a value of *ratio* times the bound still meets, in three digits; itself where it meets that."""
        if ratio <= 1:
            return self
        if self.share is not None:
            return replace(self, share=math.floor(1000 * self.at(ratio)) / 1000)
        digits = 2 - math.floor(math.log10(self.at(ratio)))
        limit = math.ceil(self.at(ratio) * 10**digits) / 10**digits
        return replace(self, limits=((self.limits[0][0], limit),))

    def attained(self, result: Result | ClusterResult) -> Attained:
        """How *result* stands against it, over every request of the run."""
        values = {name: latencies(result.records, name) for name, _ in self.limits if name != "itl"}
        within = [values[name] <= limit / 1000 for name, limit in self.limits if name in values]  # ms -> s
        share = float(np.logical_and.reduce(within).mean()) if within else math.nan
        if self.share is not None:
            return Attained(self, share, self.share / share if share > 0 else math.inf, share)
        metric, limit = self.limits[0]
        value = _itl(result, self.statistic) if metric == "itl" else statistic(values[metric], self.statistic)
        return Attained(self, 1000 * value, 1000 * value / limit, share)


@dataclass(frozen=True)
class Attained:
    """An objective and what came of it."""

    objective: Objective
    value: float
    """ms, or the share of the requests of an ``attainment`` objective; infinite where requests were turned away."""
    ratio: float
    """Above 1: missed, by this factor."""
    share: float
    """Share of the requests within the limits; NaN for gaps between tokens, which are not kept per request."""

    @property
    def met(self) -> bool:
        """Whether the objective holds."""
        return self.ratio <= 1

    @property
    def shortfall(self) -> str:
        """By how much it is missed, in words."""
        wanted = self.objective.wanted
        if self.objective.share is not None:
            return f"{self.objective}: only {self.value:.1%} of the requests are within the limits, {wanted:.0%} wanted"
        if math.isinf(self.value):
            return f"{self.objective}: requests are turned away or never finish"
        return f"{self.objective}: {self.value:.4g} ms, {self.ratio:.3g} times the limit of {wanted:g} ms"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "objective": str(self.objective),
            "value": finite(self.value),
            "ratio": finite(self.ratio),
            "share_within": finite(self.share),
            "met": self.met,
        }


@dataclass(frozen=True)
class Slo:
    """All objectives that must hold together."""

    objectives: tuple[Objective, ...]
    source: str = "stated"

    def __str__(self) -> str:
        return " ".join(str(objective) for objective in self.objectives)

    def attained(self, result: Result | ClusterResult) -> list[Attained]:
        """Every objective with what came of it."""
        return [objective.attained(result) for objective in self.objectives]

    def limit(self, metric: str) -> float:
        """The smallest bound in s on the typical value of *metric*; infinite where nothing bounds it.

        Percentiles from the median on and means bound it: latencies are skewed to the right.
        """
        bounds = [math.inf]
        for objective in self.objectives:
            wanted = objective.wanted_attainment
            if wanted is None or wanted >= 0.5:
                bounds += [limit / 1000 for name, limit in objective.limits if name == metric]  # ms -> s
        return min(bounds)


def parse_slo(texts: Iterable[str], model: str = "") -> Slo:
    """The objectives of *texts*: each an objective or the name of a preset, for *model*.

    Raises `ConfigurationError` or `UnknownNameError` with what is wrong with the first that is.
    """
    objectives: list[Objective] = []
    sources: list[str] = []
    for text in texts:
        if ":" in text:
            objectives.append(_objective(text))
        else:
            found, source = _preset(text, model)
            objectives += [_objective(one) for one in found]
            sources.append(source)
    if not objectives:
        raise ConfigurationError("no objective: state at least one, such as --slo ttft:p99:2000")
    return Slo(tuple(dict.fromkeys(objectives)), "; ".join(sources) or "stated")


@cache
def slo_presets() -> Mapping[str, Mapping[str, Any]]:
    """Objectives of the literature by name, each with its ``source``."""
    text = files("simulator.sizing").joinpath("data/slos.yaml").read_text(encoding="utf-8")
    presets: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)
    return presets


def latencies(records: Records, metric: str) -> Floats:
    """Seconds of *metric* for every request, float64[n]; infinite for one that did not finish, NaN where a finished
    one has no such time (a TPOT needs two tokens).
    """
    start, first, end = records.arrival_time, records.first_token_time, records.finish_time
    output = records.output_length
    decoded = np.where(output > 1, (end - first) / np.maximum(output - 1, 1), np.nan)
    values = {
        "ttft": first - start,
        "tpot": decoded,
        "e2el": end - start,
        "queue_time": records.first_scheduled_time - start,
        "normalized_latency": (end - start) / np.maximum(output, 1),
    }[metric]
    seconds = np.where(records.status == FINISHED, values, math.inf)
    return np.asarray(seconds[~np.isnan(seconds)] if metric == "tpot" else seconds, np.float64)


def statistic(values: Floats, name: str) -> float:
    """Mean, median, max or percentile (linear between ranks) of *values*; infinite ones keep their place."""
    if not len(values):
        return math.nan
    percentile = _percentile(name)
    if percentile is None:
        return float(values.mean())
    ordered = np.sort(values)
    rank = (len(ordered) - 1) * percentile / 100
    low, high = float(ordered[math.floor(rank)]), float(ordered[math.ceil(rank)])
    return high if low == high or math.isinf(high) else low + (high - low) * (rank - math.floor(rank))


def finite(value: float) -> float | None:
    """*value*, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def _percentile(statistic: str) -> float | None:
    named = {"median": 50.0, "max": 100.0}
    if statistic in named:
        return named[statistic]
    return float(statistic[1:]) if statistic.startswith("p") else None


def _itl(result: Result | ClusterResult, name: str) -> float:
    """Over the gaps of all requests; infinite once a request did not finish."""
    if (result.records.status != FINISHED).any():
        return math.inf
    percentile = _percentile(name)
    return result.itl.mean if percentile is None else result.itl.percentile(percentile)


def _preset(name: str, model: str) -> tuple[list[str], str]:
    presets = slo_presets()
    if name not in presets:
        raise UnknownNameError("SLO preset", name, presets)
    entry = presets[name]
    for known, objectives in entry.get("models", {}).items():
        if model.lower().replace("_", "-").startswith(known):
            return objectives, entry["source"]
    return entry["default"], entry["source"]


def _objective(text: str) -> Objective:
    parts = text.split(":")
    if len(parts) != 3:
        raise ConfigurationError(
            f"objective {text!r}: expected METRIC:STATISTIC:MILLISECONDS, such as ttft:p99:2000"
        )
    metric, statistic, bound = (part.strip() for part in parts)
    if metric == "attainment":
        return _attainment(text, statistic, bound)
    if metric not in SLO_METRICS:
        raise UnknownNameError("SLO metric", metric, (*SLO_METRICS, "attainment"))
    if statistic not in STATISTICS:
        percentile = _number(text, statistic.removeprefix("p")) if statistic.startswith("p") else math.nan
        if not 0 < percentile < 100:
            raise ConfigurationError(
                f"objective {text!r}: {statistic!r} must be mean, median, max or a percentile between p0 and p100"
            )
    return Objective(((metric, _milliseconds(text, bound)),), statistic)


def _attainment(text: str, share: str, limits: str) -> Objective:
    percent = _number(text, share.removesuffix("%"))
    if not 0 < percent <= 100:
        raise ConfigurationError(
            f"objective {text!r}: attainment {share} must be above 0 and at most 100 percent"
        )
    found = []
    for pair in limits.split(","):
        name, equals, bound = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"objective {text!r}: expected attainment:PERCENT:METRIC=MILLISECONDS,…")
        if name not in PER_REQUEST:
            raise UnknownNameError("metric of an attainment", name, PER_REQUEST)
        found.append((name, _milliseconds(text, bound)))
    return Objective(tuple(found), "attainment", percent / 100)


def _milliseconds(text: str, value: str) -> float:
    number = _number(text, value)
    if not 0 < number < math.inf:
        raise ConfigurationError(f"objective {text!r}: milliseconds must be above 0 and finite")
    return number


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigurationError(f"objective {text!r}: {value!r} is not a number") from None
