"""Where the space is too large to look at every choice: draws by Optuna, then a descent from the best.

Every combination of GPU, system and tensor parallel size is looked at once, at the first value of every other axis.
Then a tree-structured Parzen estimator (Bergstra et al. 2011; Optuna's `TPESampler`) learns from the cost of what was
drawn where cheap plans are. What the analytic bound rules out is not simulated; it is told the cost that the bound
makes likely. From the cheapest plan of each GPU type the descent changes one axis at a time, as long as that makes it
cheaper: no single change improves what it ends with. Draws are asked for and told in rounds of a fixed size, so the
answer depends on the seed and not on the number of workers.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from simulator.errors import ConfigurationError
from simulator.sizing.candidates import Candidate, Choice, SearchSpace, Skipped, ToBeat
from simulator.sizing.capacity import Capacity

__all__ = ["Outcome", "Sampled", "draw", "need_optuna"]

ROUND = 8
HOPELESS = 1e6
"""$ per hour that a choice counts for which cannot run or cannot meet the SLO."""
TYPICAL = 0.6
"""Share of the analytic bound that a percentile SLO leaves."""
FIRST = ("gpu", "system", "tensor_parallel_size")
"""Axes of which every combination is looked at."""
REPEATS = 20
"""Rounds of nothing but known points after which the space counts as exhausted."""
Point = dict[str, int]
"""The index of the value on every axis."""


@dataclass(frozen=True)
class Outcome:
    """What came of a choice; *capacity* is None for one that was screened out."""

    candidate: Candidate | Skipped
    capacity: Capacity | Skipped | None
    beaten_by: ToBeat = field(default_factory=ToBeat)
    """What it had to be better than."""

    def costs(self, request_rate: float) -> ToBeat:
        """What it costs; infinite where that was not found."""
        if not isinstance(self.capacity, Capacity) or not isinstance(self.candidate, Candidate):
            return ToBeat()
        if self.capacity.request_rate == 0:
            return ToBeat()
        return self.candidate.costs(self.capacity.request_rate, request_rate)


@dataclass
class Sampled:
    """A search by draws. *evaluate* is called in the workers: (choice, what it must beat) → `Outcome`."""

    space: SearchSpace
    request_rate: float
    evaluate: Callable[[Choice, ToBeat], Outcome]
    pool: Executor
    seen: dict[tuple[int, ...], Outcome] = field(default_factory=dict)
    """Every choice that was looked at, in order."""

    def __post_init__(self) -> None:
        self.axes = self.space.axes

    @property
    def outcomes(self) -> Iterable[Outcome]:
        """In the order in which they were found."""
        return self.seen.values()

    def key(self, point: Point) -> tuple[int, ...]:
        """*point* in the order of the axes."""
        return tuple(point[name] for name in self.axes)

    def cost(self, point: Point) -> float:
        """$ per hour of a known *point*, or what the bound makes likely where nothing more is known."""
        outcome = self.seen[self.key(point)]
        found = outcome.costs(self.request_rate).fraction
        if found < math.inf:
            return found
        if isinstance(outcome.candidate, Skipped) or isinstance(outcome.capacity, Capacity):
            return HOPELESS
        return outcome.candidate.least_cost(self.request_rate) / TYPICAL

    def gpu(self, point: Point) -> str:
        """The GPU type at *point*."""
        return str(self.axes["gpu"][point["gpu"]])

    @property
    def best(self) -> dict[str, tuple[ToBeat, tuple[int, ...]]]:
        """What the cheapest known plan of each GPU type costs, and its key."""
        found: dict[str, tuple[ToBeat, tuple[int, ...]]] = {}
        for key, outcome in self.seen.items():
            costs = outcome.costs(self.request_rate)
            if costs.whole < math.inf:
                gpu = self.gpu(dict(zip(self.axes, key)))
                found[gpu] = min(found.get(gpu, (costs, key)), (costs, key))
        return found

    def start(self) -> None:
        """Look at every combination of the first axes."""
        rest = {name: 0 for name in self.axes if name not in FIRST}
        sizes = (range(len(self.axes[name])) for name in FIRST)
        points = [{**dict(zip(FIRST, indices)), **rest} for indices in itertools.product(*sizes)]
        for i in range(0, len(points), ROUND):
            self.look(points[i : i + ROUND])

    def look(self, points: Iterable[Point]) -> None:
        """Evaluate those of *points* that are not known, together."""
        fresh = {self.key(point): point for point in points if self.key(point) not in self.seen}
        costs = {gpu: costs for gpu, (costs, _) in self.best.items()}
        futures = [
            self.pool.submit(self.evaluate, self.choice(point), costs.get(self.gpu(point), ToBeat()))
            for point in fresh.values()
        ]
        for key, future in zip(fresh, futures):
            self.seen[key] = future.result()

    def choice(self, point: Point) -> Choice:
        """What *point* stands for."""
        return self.space.choice({name: values[point[name]] for name, values in self.axes.items()})

    def neighbours(self, point: Point) -> Iterator[Point]:
        """All points that differ from *point* on one axis."""
        for name, values in self.axes.items():
            for i in range(len(values)):
                if i != point[name]:
                    yield {**point, name: i}

    def descend(self) -> None:
        """From the cheapest known plan of each GPU type, one axis at a time, to one that no single change improves."""
        stay: set[tuple[int, ...]] = set()
        while moves := [key for _, key in self.best.values() if key not in stay]:
            stay.add(moves[0])
            around = [
                p for p in self.neighbours(dict(zip(self.axes, moves[0]))) if self.key(p) not in self.seen
            ]
            for i in range(0, len(around), ROUND):
                self.look(around[i : i + ROUND])


def need_optuna() -> Any:
    """Optuna. Raises `ConfigurationError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigurationError(
            "this search space needs Optuna: pip install servesim[cluster], or look at every choice with --search bound"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def draw(
    sampled: Sampled, trials: int, seed: int, progress: Callable[[str], None] = lambda text: None
) -> None:
    """Look at about *trials* points, the first combinations among them, then descend."""
    optuna = need_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    study, distributions = optuna.create_study(sampler=sampler), _distributions(optuna, sampled.axes)
    sampled.start()
    for key in sampled.seen:
        point = dict(zip(sampled.axes, key))
        value = math.log(sampled.cost(point))
        study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
    trials, idle = min(trials, len(sampled.space)), 0
    while len(sampled.seen) < trials and idle < REPEATS:
        known = len(sampled.seen)
        asked = [study.ask(distributions) for _ in range(min(ROUND, trials - known))]
        points = [{name: int(value) for name, value in one.params.items()} for one in asked]
        sampled.look(points)
        for one, point in zip(asked, points):
            study.tell(one, math.log(sampled.cost(point)))
        idle = idle + 1 if len(sampled.seen) == known else 0
        progress(f"{len(sampled.seen)} of {trials} choices drawn")
    sampled.descend()


def _distributions(optuna: Any, axes: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Positions on the axes: values need not have an order."""
    choices = optuna.distributions.CategoricalDistribution
    return {name: choices(tuple(range(len(values)))) for name, values in axes.items()}
