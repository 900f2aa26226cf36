"""How far a prediction may be off: the run repeated with step times drawn from what is not known about them.

Two things are drawn for every repetition. The laws, within the covariance of their fits and the errors of their forms:
they decide which operators are slow. And the level of all step times: its spread is what measured configurations
showed that the fit had not seen (`EngineCosts`: smaller where this model on this device was among the data). The level
replaces that of the drawn laws, so that nothing is counted twice. TTFT, which hangs on front ends and on how a client
submits, carries a further spread of its own.

Levels are stratified: draw i takes the normal quantile (i + 1/2)/n, in random order. So already 32 repetitions give
the quantiles at (1 ± level)/2, which are the interval: no shape of the distribution is assumed, and what saturates (a
full cache, an overloaded queue) may be as skewed as it is. The value printed beside it is that of the undrawn run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError
from simulator.results import Intervals, Summary
from simulator.simulation import Result, simulate
from simulator.steptime import StepTime
from simulator.steptime.laws import LawSet
from simulator.workload import Trace

__all__ = ["DrawnStep", "simulate_with_intervals"]

LARGEST_CHUNK = 8192


class DrawnStep:
    """A step-time model, *factor* times as slow."""

    def __init__(self, step: StepTime, factor: float) -> None:
        self.step, self.factor = step, factor
        self.traits = step.traits

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        """Duration of one forward."""
        return self.factor * self.step.seconds(num_decodes, decode_context, prefills)

    def segment(self, num_decodes: int, decode_context: int, n: int) -> Any:
        """Durations of *n* decode iterations."""
        durations = self.step.segment(num_decodes, decode_context, n)
        if isinstance(durations, list):
            return [self.factor * seconds for seconds in durations]
        return self.factor * durations


def simulate_with_intervals(
    trace: Trace,
    deployment: Deployment | Resolved,
    n: int = 32,
    *,
    level: float = 0.9,
    seed: int = 0,
    **options: Any,
) -> Result:
    """`simulate`, with an interval on every metric of the summary from *n* further runs on drawn step times.

    Deterministic for a *seed*. *options* are those of `simulate`. Raises `ConfigurationError` for fewer than two
    draws or a *level* outside (0, 1).
    """
    if n < 2:
        raise ConfigurationError(f"intervals {n}: at least 2 draws are needed")
    if not 0 < level < 1:
        raise ConfigurationError(f"level {level}: must be between 0 and 1")
    resolved = deployment if isinstance(deployment, Resolved) else deployment.resolve()
    result = simulate(trace, resolved, seed=seed, **options)
    batch = max(round(result.summary["mean_batch_size"] or 1), 1)
    runs = _draws(trace, resolved, n, batch, np.random.default_rng(seed), {"seed": seed, **options})
    summary = replace(result.summary, intervals=_intervals(result.summary, runs, level))
    return replace(result, summary=summary)


def _draws(
    trace: Trace, resolved: Resolved, n: int, batch: int, rng: np.random.Generator, options: dict[str, Any]
) -> list[Summary]:
    spread = resolved.steptime.traits.engine.spread_for(resolved.profile.name, resolved.model.name)
    levels, fronts = stratified(n, rng), stratified(n, rng)
    extra = math.sqrt(max(spread.ttft**2 - spread.step**2, 0.0))
    runs = []
    for z, front in zip(levels.tolist(), fronts.tolist(), strict=True):
        step = _drawn_step(trace, resolved, batch, spread.step * z, rng)
        drawn = replace(resolved, steptime=cast(StepTime, step))
        runs.append(_with_front_end(simulate(trace, drawn, **options).summary, math.exp(extra * front)))
    return runs


def _drawn_step(
    trace: Trace, resolved: Resolved, batch: int, log_level: float, rng: np.random.Generator
) -> DrawnStep:
    nominal = resolved.steptime
    laws = nominal.laws
    step = nominal.with_laws(laws.draw(rng)) if isinstance(laws, LawSet) else nominal
    ratio = _life(step, trace, batch) / _life(nominal, trace, batch)
    return DrawnStep(step, math.exp(log_level) / ratio)


def _life(step: StepTime, trace: Trace, batch: int) -> float:
    """Seconds of a mean request among *batch* others, for the level of a drawn set of laws."""
    prompt, output = max(int(trace.input_length.mean()), 1), max(int(trace.output_length.mean()), 1)
    decoding = step.seconds(batch, batch * (prompt + output // 2 + 1))
    return float(batch * step.seconds(0, 0, [(min(prompt, LARGEST_CHUNK), 0)]) + output * decoding)


def stratified(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """*n* standard normals at the quantiles (i + 1/2)/n, in random order."""
    normal = NormalDist()
    return rng.permutation([normal.inv_cdf((i + 0.5) / n) for i in range(n)])


def _with_front_end(summary: Summary, factor: float) -> Summary:
    values = {
        key: value * factor if key.endswith("_ttft_ms") and value is not None else value
        for key, value in summary.values.items()
    }
    return replace(summary, values=values)


def _intervals(nominal: Summary, runs: Sequence[Summary], level: float) -> Intervals:
    """Quantiles at (1 ± level)/2 of every number that all runs have."""
    tails = ((1 - level) / 2, (1 + level) / 2)
    values: dict[str, tuple[float, float]] = {}
    for key in nominal.values:
        known = [run.values.get(key) for run in runs]
        numbers = [float(value) for value in known if value is not None and math.isfinite(value)]
        if len(numbers) == len(runs):
            low, high = np.quantile(numbers, tails, method="hazen")  # draw i is the quantile (i + 1/2)/n
            values[key] = (float(low), float(high))
    return Intervals(level, len(runs), "model", values)
