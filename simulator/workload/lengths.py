"""Length distributions: whole tokens from 1, drawn, rounded and clipped (never redrawn) to [min, max].

No parametric family fits production lengths well (Azure's are off a lognormal by a Kolmogorov distance of
0.11 to 0.18): pairs drawn from a real trace are the safer choice, and keep the relation of prompt to output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError, UnknownNameError
from simulator.workload.columns import MAX_LENGTH
from simulator.workload.trace import Trace

__all__ = ["LENGTHS", "Lengths", "empirical_pairs"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lengths:
    """A named distribution with its parameters; `Lengths.parse` reads
    ``lognormal:mean=1155,sigma=0.99,max=8192``.

    | name | parameters |
    |---|---|
    | fixed | value |
    | uniform | low, high (both may occur) |
    | normal | mean, std |
    | lognormal | mean or median, sigma (of the logarithm) |
    | zipf | theta, low, high: P(low + k) ∝ (k + 1)^−theta |
    | geometric | mean: P(k) ∝ (1 − 1/mean)^k from 1 on, as of sessions that end after each turn alike |

    All but fixed take min (1) and max.
    """

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in LENGTHS:
            raise UnknownNameError("length distribution", self.name, LENGTHS)
        _, required, optional = LENGTHS[self.name]
        for name in required:
            if name not in self.parameters:
                raise ConfigurationError(
                    f"lengths {self.name}: needs {', '.join(required)}; {name} is missing"
                )
        for name, value in self.parameters.items():
            if name not in (*required, *optional, "min", "max"):
                raise UnknownNameError(
                    f"parameter of {self.name}", name, (*required, *optional, "min", "max")
                )
            if not 0 <= value <= MAX_LENGTH:
                raise ConfigurationError(
                    f"lengths {self.name}: {name}={value}: must be from 0 to {MAX_LENGTH}"
                )

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From ``name:key=number,...``, or a number alone for a fixed length."""
        name, _, rest = text.partition(":")
        if _number(name) is not None and not rest:
            return cls("fixed", {"value": float(name)})
        parameters: dict[str, float] = {}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            number = _number(value)
            if number is None:
                raise ConfigurationError(f"lengths {text!r}: {part!r} must be key=number")
            parameters[key.strip()] = number
        return cls(name, parameters)

    def draw(self, n: int, generator: np.random.Generator) -> Ints:
        """*n* lengths, int64."""
        values = LENGTHS[self.name][0](n, self.parameters, generator)
        low, high = self.parameters.get("min", 1), self.parameters.get("max", MAX_LENGTH)
        return np.clip(np.rint(values), max(low, 1), high).astype(np.int64)


def empirical_pairs(trace: Trace, n: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """*n* pairs (input_length, output_length) of requests of *trace*, drawn with replacement."""
    row = generator.integers(0, len(trace), n)
    return trace.input_length[row], trace.output_length[row]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _fixed(n: int, p: Mapping[str, float], _: np.random.Generator) -> Floats:
    return np.full(n, p["value"])


def _uniform(n: int, p: Mapping[str, float], generator: np.random.Generator) -> Floats:
    low, high = _bounds(p)
    return generator.integers(low, high + 1, n).astype(np.float64)


def _normal(n: int, p: Mapping[str, float], generator: np.random.Generator) -> Floats:
    return generator.normal(p["mean"], p["std"], n)


def _lognormal(n: int, p: Mapping[str, float], generator: np.random.Generator) -> Floats:
    if ("mean" in p) == ("median" in p):
        raise ConfigurationError("lengths lognormal: needs one of mean and median")
    sigma = p["sigma"]
    scale = p["median"] if "median" in p else p["mean"] * math.exp(-(sigma**2) / 2)  # mean = median e^(σ²/2)
    return scale * np.exp(sigma * generator.standard_normal(n))


def _zipf(n: int, p: Mapping[str, float], generator: np.random.Generator) -> Floats:
    low, high = _bounds(p)
    weights = np.arange(1, high - low + 2, dtype=np.float64) ** -p["theta"]
    cumulative = np.cumsum(weights)
    rank = np.searchsorted(cumulative, generator.random(n) * cumulative[-1], side="right")
    values: Floats = np.float64(low) + rank
    return values


def _geometric(n: int, p: Mapping[str, float], generator: np.random.Generator) -> Floats:
    if p["mean"] < 1:
        raise ConfigurationError(f"lengths geometric: mean={p['mean']}: must be at least 1")
    return generator.geometric(1 / p["mean"], n).astype(np.float64)


def _bounds(p: Mapping[str, float]) -> tuple[int, int]:
    low, high = int(p["low"]), int(p["high"])
    if not 1 <= low <= high:
        raise ConfigurationError(f"lengths from {low} to {high}: must be 1 <= low <= high")
    return low, high


Draw = Callable[[int, Mapping[str, float], np.random.Generator], Floats]

LENGTHS: dict[str, tuple[Draw, tuple[str, ...], tuple[str, ...]]] = {
    "fixed": (_fixed, ("value",), ()),
    "uniform": (_uniform, ("low", "high"), ()),
    "normal": (_normal, ("mean", "std"), ()),
    "lognormal": (_lognormal, ("sigma",), ("mean", "median")),
    "zipf": (_zipf, ("theta", "low", "high"), ()),
    "geometric": (_geometric, ("mean",), ()),
}
"""How each distribution draws, the parameters it needs and those it may have."""
