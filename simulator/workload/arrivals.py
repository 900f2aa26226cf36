"""Arrival processes: when requests come, as float64 seconds that start at 0 and do not decrease.

Renewal processes (constant, Poisson, gamma, Weibull) draw independent gaps of mean 1 / rate. Real traffic is
burstier over minutes than any of them: Azure's chat arrivals look Poisson within a second (variance / mean of
counts 1.4) and not at all within a minute (16), since their rate drifts; piecewise rates and the
Markov-modulated Poisson process have that. Gaps are never truncated (a simulator that cuts exponential gaps
at 3 / rate raises its load by 5 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import ConfigurationError

__all__ = [
    "constant_arrivals",
    "gamma_arrivals",
    "mmpp_arrivals",
    "piecewise_arrivals",
    "poisson_arrivals",
    "ramp_arrivals",
    "weibull_arrivals",
]

Floats = NDArray[np.float64]


def constant_arrivals(n: int, rate: float) -> Floats:
    """Every 1 / *rate* seconds; an infinite rate is all at once."""
    return np.arange(n) / check_rate(rate)


def poisson_arrivals(n: int, rate: float, generator: np.random.Generator) -> Floats:
    """Exponential gaps."""
    return gamma_arrivals(n, rate, 1.0, generator)


def gamma_arrivals(n: int, rate: float, burstiness: float, generator: np.random.Generator) -> Floats:
    """Gamma gaps with vLLM's `--burstiness` as shape: coefficient of variation burstiness^-1/2, so 1 is
    Poisson.
    """
    check_positive("burstiness", burstiness)
    return _from_gaps(_unit_gamma(n, burstiness, generator) / check_rate(rate))


def weibull_arrivals(n: int, rate: float, shape: float, generator: np.random.Generator) -> Floats:
    """Weibull gaps; a shape of 0.42 fits Azure's code completion best of four families."""
    check_positive("shape", shape)
    unit = generator.weibull(shape, max(n - 1, 0)) / math.gamma(1 + 1 / shape)
    return _from_gaps(unit / check_rate(rate))


def mmpp_arrivals(
    n: int, rates: Sequence[float], sojourns: Sequence[float], generator: np.random.Generator
) -> Floats:
    """Markov-modulated Poisson: state k lasts exponentially with mean sojourns[k] s and has rates[k] arrivals
    per s.

    States follow each other in turn, the first drawn by the share of time spent in each, which makes the
    process stationary. With two states of rates a, b and mean sojourns 1/r, 1/s the mean rate is (a s + b r)
    / (r + s), the variance / mean of long counts 1 + 2 r s (a − b)² / ((r + s)² (a s + b r)) (Fischer and
    Meier-Hellstern 1993).
    """
    check_states(rates, sojourns)
    share = np.asarray(sojourns) / np.sum(sojourns)
    state = int(generator.choice(len(rates), p=share))
    level = np.concatenate(([0.0], np.cumsum(generator.exponential(1.0, max(n - 1, 0)))))
    times, levels = [0.0], [0.0]
    while levels[-1] < level[-1]:
        lasts = generator.exponential(sojourns[state])
        times.append(times[-1] + lasts)
        levels.append(levels[-1] + lasts * rates[state])
        state = (state + 1) % len(rates)
    return np.interp(level, *_without_idle(levels, times))


def piecewise_arrivals(
    n: int, rates: Sequence[float], durations: Sequence[float], generator: np.random.Generator
) -> Floats:
    """Poisson arrivals at rates[k] per s for durations[k] s, over and over: the curve of a day, say.

    Unit-rate arrivals are sent through the inverse of the expected count (time rescaling), which is exact.
    """
    check_states(rates, durations)
    level = np.concatenate(([0.0], np.cumsum(generator.exponential(1.0, max(n - 1, 0)))))
    period, count = float(np.sum(durations)), float(np.dot(rates, durations))
    levels = np.concatenate(([0.0], np.cumsum(np.multiply(rates, durations))))
    times = np.concatenate(([0.0], np.cumsum(durations)))
    cycles = np.floor(level / count)
    arrivals: Floats = cycles * period + np.interp(level - cycles * count, *_without_idle(levels, times))
    return arrivals


def ramp_arrivals(
    n: int,
    start_rate: float,
    end_rate: float,
    generator: np.random.Generator,
    *,
    shape: str = "linear",
    burstiness: float = 1.0,
) -> Floats:
    """Gamma gaps whose rate goes from *start_rate* to *end_rate* over the requests, 'linear' or
    'exponential'.

    As vLLM's `--ramp-up-strategy`: request i of n is sent at rate start + (end − start) i/n, or start
    (end/start)^(i/n).
    """
    if shape not in ("linear", "exponential"):
        raise ConfigurationError(f"ramp {shape!r}: must be linear or exponential")
    for rate in (start_rate, end_rate):
        if not 0 < rate < math.inf:
            raise ConfigurationError(f"ramp rate {rate}: must be above 0 and finite")
    check_positive("burstiness", burstiness)
    progress = np.arange(max(n - 1, 0)) / n
    linear = start_rate + (end_rate - start_rate) * progress
    rates = linear if shape == "linear" else start_rate * (end_rate / start_rate) ** progress
    return _from_gaps(_unit_gamma(n, burstiness, generator) / rates)


def check_rate(rate: float) -> float:
    """*rate* if it is above 0."""
    if not rate > 0:
        raise ConfigurationError(f"request rate {rate}: must be above 0")
    return rate


def check_positive(name: str, value: float) -> None:
    """Refuse what is not above 0 and finite."""
    if not 0 < value < math.inf:
        raise ConfigurationError(f"{name} {value}: must be above 0 and finite")


def check_states(rates: Sequence[float], durations: Sequence[float]) -> None:
    """One duration above 0 for each rate from 0, one rate above 0 at least."""
    if len(rates) != len(durations) or not len(rates):
        raise ConfigurationError(
            f"{len(rates)} rates, {len(durations)} durations: must be as many, at least 1"
        )
    if not all(0 <= rate < math.inf for rate in rates) or not max(rates) > 0:
        raise ConfigurationError(f"rates {list(rates)}: must be at least 0 and finite, one above 0")
    for duration in durations:
        check_positive("duration", duration)


def _unit_gamma(n: int, shape: float, generator: np.random.Generator) -> Floats:
    return generator.gamma(shape, 1 / shape, max(n - 1, 0))


def _from_gaps(gaps: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(gaps)))


def _without_idle(levels: ArrayLike, times: ArrayLike) -> tuple[Floats, Floats]:
    """Knots of the inverse count: at a level where time passes without arrivals, the later time."""
    level, time = np.asarray(levels, np.float64), np.asarray(times, np.float64)
    last = np.append(np.diff(level) > 0, True)
    last |= np.append(True, np.diff(level) > 0)
    return level[last], time[last]
