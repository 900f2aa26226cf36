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

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import ClusterResult, ClusterSpec, simulate_cluster
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


@overload
def simulate_with_intervals(
    trace: Trace,
    deployment: Deployment | Resolved,
    n: int = ...,
    *,
    level: float = ...,
    seed: int = ...,
    **options: Any,
) -> Result: ...


@overload
def simulate_with_intervals(
    trace: Trace,
    deployment: ClusterSpec,
    n: int = ...,
    *,
    level: float = ...,
    seed: int = ...,
    **options: Any,
) -> ClusterResult: ...


def simulate_with_intervals(
    trace: Trace,
    deployment: Deployment | Resolved | ClusterSpec,
    n: int = 32,
    *,
    level: float = 0.9,
    seed: int = 0,
    **options: Any,
) -> Result | ClusterResult:
    """`simulate`, with an interval on every metric of the summary from *n* further runs on drawn step times.

    In a cluster, pools of the same GPU, model and system share their errors; others are drawn by themselves.
    Deterministic for a *seed*. *options* are those of `simulate`. Raises `ConfigurationError` for fewer than two
    draws or a *level* outside (0, 1).
    """
    if n < 2:
        raise ConfigurationError(f"intervals {n}: at least 2 draws are needed")
    if not 0 < level < 1:
        raise ConfigurationError(f"level {level}: must be between 0 and 1")
    rng, options = np.random.default_rng(seed), {"seed": seed, **options}
    if isinstance(deployment, ClusterSpec):
        return _cluster_with_intervals(trace, deployment, n, level, rng, options)
    resolved = deployment if isinstance(deployment, Resolved) else deployment.resolve()
    result = simulate(trace, resolved, **options)
    runs = [
        _with_front_end(simulate(trace, replace(resolved, steptime=steps[0]), **options).summary, front)
        for steps, front in _draws(trace, [resolved], n, _batch(result.summary), rng)
    ]
    return replace(result, summary=_with_intervals(result.summary, runs, level))


def _cluster_with_intervals(
    trace: Trace, spec: ClusterSpec, n: int, level: float, rng: np.random.Generator, options: dict[str, Any]
) -> ClusterResult:
    result = simulate_cluster(trace, spec, **options)
    parts = {pool.pool.name: pool.resolved for pool in result.pools}
    runs = [
        _with_front_end(
            simulate_cluster(trace, spec, steptimes=dict(zip(parts, steps)), **options).summary, front
        )
        for steps, front in _draws(trace, list(parts.values()), n, _batch(result.summary), rng)
    ]
    return replace(result, summary=_with_intervals(result.summary, runs, level))


def _batch(summary: Summary) -> int:
    return max(round(summary["mean_batch_size"] or 1), 1)


def _draws(
    trace: Trace, parts: Sequence[Resolved], n: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[list[StepTime], float]]:
    """(step times of every part, factor on TTFT) of *n* draws. Parts of one `_kind` are wrong in the same way."""
    kinds: dict[Any, list[int]] = {}
    for i, part in enumerate(parts):
        kinds.setdefault(_kind(part), []).append(i)
    spreads = [_spread(part) for part in parts]
    levels = {kind: stratified(n, rng).tolist() for kind in kinds}
    fronts = stratified(n, rng).tolist()
    extra = max(math.sqrt(max(spread.ttft**2 - spread.step**2, 0.0)) for spread in spreads)
    for draw in range(n):
        steps: dict[int, StepTime] = {}
        for kind, members in kinds.items():
            before = copy.deepcopy(rng)
            for i in members:
                laws = rng if i == members[0] else copy.deepcopy(before)
                log_level = spreads[i].step * levels[kind][draw]
                steps[i] = cast(StepTime, _drawn_step(trace, parts[i], batch, log_level, laws))
        yield [steps[i] for i in range(len(parts))], math.exp(extra * fronts[draw])


def _kind(part: Resolved) -> tuple[Any, ...]:
    """What makes two deployments wrong in the same way."""
    return part.profile.name, part.model.name, part.system.name, part.parallelism, part.precision


def _spread(part: Resolved) -> Any:
    return part.steptime.traits.engine.spread_for(part.profile.name, part.model.name)


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


def _with_intervals(nominal: Summary, runs: Sequence[Summary], level: float) -> Summary:
    """*nominal* with quantiles at (1 ± level)/2 of every number that all runs have."""
    tails = ((1 - level) / 2, (1 + level) / 2)
    values: dict[str, tuple[float, float]] = {}
    for key in nominal.values:
        known = [run.values.get(key) for run in runs]
        numbers = [float(value) for value in known if value is not None and math.isfinite(value)]
        if len(numbers) == len(runs):
            low, high = np.quantile(numbers, tails, method="hazen")  # draw i is the quantile (i + 1/2)/n
            values[key] = (float(low), float(high))
    return replace(nominal, intervals=Intervals(level, len(runs), "model", values))
