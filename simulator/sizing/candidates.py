"""What may be deployed: GPU × parallelism × system × limits, and what the analytic bound leaves of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hwprofiles import load_profile
from simulator.analytic import SteadyState, Traffic
from simulator.cluster import ClusterSpec
from simulator.cluster.resolve import resolve_pools
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, SimError, UnknownNameError
from simulator.scheduling.system import find_system
from simulator.sizing.options import is_option, unfold
from simulator.sizing.prices import Prices
from simulator.sizing.slo import Attained, finite
from simulator.sizing.split import Split

__all__ = ["LARGE_SPACE", "Candidate", "Choice", "SearchSpace", "Skipped", "ToBeat", "screen"]

DEFAULT_GPUS = ("h100", "h200", "a100", "l40s", "mi300x")
SPLIT = "split"
LARGE_SPACE = 5_000
"""Choices above which a search draws from the space, unless told otherwise, instead of screening all of it."""
ROUNDING = 1e-9
SLACK = 1.1
"""The analytic bound is raised by this factor before it prunes: it is that of a steady stream of mean requests."""


@dataclass(frozen=True)
class SearchSpace:
    """The choices; their product is searched. None among them: what the system would choose.

    *splits*: prefill and decode replicas of a unit, or None for replicas that do both. *more*: values of any other
    option of a deployment by its name, ``options.NAME`` for one of the system's own.
    """

    base: Deployment
    gpus: Sequence[str] = DEFAULT_GPUS
    systems: Sequence[str] = ("vllm",)
    tensor_parallel_sizes: Sequence[int] = (1, 2, 4, 8)
    dtypes: Sequence[str | None] = (None, "fp8")
    max_num_seqs: Sequence[int | None] = (None, 128)
    max_num_batched_tokens: Sequence[int | None] = (None, 2048)
    pipeline_parallel_sizes: Sequence[int] = (1,)
    chunked_prefill: Sequence[bool | None] = (None,)
    splits: Sequence[Split | None] = (None,)
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of every axis, each once. Raises `SimError` for a GPU, system or option that does not exist."""
        for name in self.systems:
            find_system(name)
        stated = {
            "gpu": [load_profile(gpu).name for gpu in self.gpus],
            "system": self.systems,
            "tensor_parallel_size": self.tensor_parallel_sizes,
            "dtype": self.dtypes,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "pipeline_parallel_size": self.pipeline_parallel_sizes,
            "enable_chunked_prefill": self.chunked_prefill,
        }
        known = set(Deployment.model_fields) - {*stated, "num_replicas", "router", "options"}
        for name in self.more:
            if name not in known and not (is_option(name) and "." in name):
                raise UnknownNameError("option to vary", name, [*known, "options.NAME"])
        axes = {**stated, **self.more, SPLIT: self.splits}
        if empty := [name for name, values in axes.items() if not values]:
            raise ConfigurationError(f"the search space is empty: {empty[0]} needs at least one value")
        return {
            name: list({repr(value): value for value in values}.values()) for name, values in axes.items()
        }

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def choices(self) -> Iterator[Choice]:
        """Every choice once, in a fixed order."""
        axes = self.axes
        for values in itertools.product(*axes.values()):
            yield self.choice(dict(zip(axes, values)))

    def choice(self, point: Mapping[str, Any]) -> Choice:
        """The choice at *point*, a value for every axis."""
        chosen = {name: value for name, value in point.items() if value is not None and name != SPLIT}
        stated = unfold(self.base.model_dump(exclude_unset=True) | chosen) | {"num_replicas": 1}
        varied = {name.removeprefix("options."): point[name] for name in self.more}
        named = tuple(f"{name} {'default' if value is None else value}" for name, value in varied.items())
        return Choice(Deployment.of(**stated), point[SPLIT], named)


@dataclass(frozen=True)
class Choice:
    """One point of the space: what a replica is, and whether prefill and decode are apart. *named*: what it varies
    beyond the usual axes, in words."""

    deployment: Deployment
    split: Split | None = None
    named: tuple[str, ...] = ()

    @property
    def num_gpus(self) -> int:
        """Of one replica, or of a unit of prefill and decode replicas."""
        d = self.deployment
        ranks = d.tensor_parallel_size * d.data_parallel_size * (d.prefill_context_parallel_size or 1)
        return ranks * d.pipeline_parallel_size * (self.split.replicas if self.split else 1)

    @property
    def name(self) -> str:
        """The choice in a few words."""
        d, split = self.deployment, self.split
        gpus = self.num_gpus // (split.replicas if split else 1)
        parts = [f"{gpus} x {d.gpu}", d.system, d.dtype or "published weights"]
        parts += (
            [f"pipeline_parallel_size {d.pipeline_parallel_size}"] if d.pipeline_parallel_size > 1 else []
        )
        parts += [f"max_num_seqs {d.max_num_seqs}"] if d.max_num_seqs else []
        parts += [f"max_num_batched_tokens {d.max_num_batched_tokens}"] if d.max_num_batched_tokens else []
        parts += ["no chunked prefill"] if d.enable_chunked_prefill is False else []
        parts += self.named
        parts += [f"{split.prefill} prefill + {split.decode} decode replicas"] if split else []
        return ", ".join(parts)

    def system(self, replicas: int) -> Deployment | ClusterSpec:
        """What is simulated: *replicas* of it, or so many units."""
        if self.split is not None:
            return self.split.cluster(self.deployment, replicas)
        return self.deployment.model_copy(update={"num_replicas": replicas})


class ToBeat(NamedTuple):
    """$ per hour of the best plan so far: with whole replicas, and with a fraction of one, which says how much of the
    last is spare. Of two plans that cost the same the one with more to spare is better."""

    whole: float = math.inf
    fraction: float = math.inf


@dataclass(frozen=True)
class Candidate:
    """A choice with its price and the analytic bound of one replica (or unit), requests/s."""

    choice: Choice
    usd_per_gpu_hour: float
    num_gpus: int
    bound: float

    @property
    def deployment(self) -> Deployment:
        """Of one replica."""
        return self.choice.deployment

    @property
    def name(self) -> str:
        """The choice in a few words."""
        return self.choice.name

    @property
    def usd_per_replica(self) -> float:
        """$ per hour."""
        return self.usd_per_gpu_hour * self.num_gpus

    def least_cost(self, request_rate: float) -> float:
        """$ per hour below which *request_rate* cannot be served, by the bound."""
        return math.ceil(request_rate / (SLACK * self.bound)) * self.usd_per_replica

    def costs(self, capacity: float, request_rate: float) -> ToBeat:
        """Of *request_rate* where one replica takes *capacity*, 1/s: at most what the bound allows, since a short trace
        ends before its queue has grown."""
        needed = request_rate / min(capacity, SLACK * self.bound)
        return ToBeat(math.ceil(needed) * self.usd_per_replica, needed * self.usd_per_replica)

    def may_beat(self, best: ToBeat, request_rate: float) -> bool:
        """Whether the bound leaves room for a better plan than *best*."""
        return SLACK * self.bound > self.rate_to_beat(best, request_rate)

    def replicas_below(self, usd_per_hour: float) -> int:
        """The most replicas that cost less than *usd_per_hour*."""
        return math.ceil(usd_per_hour / self.usd_per_replica - ROUNDING) - 1

    def rate_to_beat(self, best: ToBeat, request_rate: float) -> float:
        """Requests/s that one replica must take to be better than *best*; infinite where none is cheap enough."""
        if best.whole == math.inf:
            return 0.0
        affordable, fewer = best.whole / self.usd_per_replica, self.replicas_below(best.whole)
        rates = [request_rate / fewer] if fewer >= 1 else []
        if (
            abs(affordable - round(affordable)) < ROUNDING
        ):  # as many replicas for the same money, with more to spare
            rates.append(request_rate * self.usd_per_replica / best.fraction)
        return min(rates, default=math.inf)


@dataclass(frozen=True)
class Skipped:
    """A choice that was not followed to the end, and why. *stage*: impossible, price, bound or simulation."""

    name: str
    stage: str
    why: str
    usd_per_hour: float | None = None
    """Of *replicas*, which is what was ruled out; None where it has no price."""
    replicas: int = 1
    choice: Choice | None = field(default=None, repr=False)
    attained: tuple[Attained, ...] = field(default=(), repr=False)
    """How near it came to the SLO, where that was simulated."""

    @property
    def ratio(self) -> float:
        """How far above its limit the objective is that is missed by most; infinite where nothing was simulated."""
        return max((one.ratio for one in self.attained), default=math.inf)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("name", "stage", "why", "replicas", "usd_per_hour")
        return {name: getattr(self, name) for name in names} | {"ratio": finite(self.ratio)}


def screen(choice: Choice, traffic: Traffic, prices: Prices, tpot_s: float) -> Candidate | Skipped:
    """The candidate, or why it is none: it does not fit, has no price, or its shortest round is too long."""
    split, device = choice.split, load_profile(choice.deployment.gpu).device_name
    if device not in prices:
        return Skipped(choice.name, "price", prices.missing(device))
    price = prices.of(device).usd_per_hour
    try:
        resolved = choice.deployment.resolve()
        if split is not None:
            resolve_pools(split.cluster(choice.deployment))
        state = SteadyState(resolved, traffic)
        bound = state.capacity_bound(tpot_s) if split is None else split.bound(state, tpot_s)
    except SimError as error:
        why = " ".join(str(error).split())
        return Skipped(choice.name, "impossible", why, price * choice.num_gpus, choice=choice)
    if bound <= 0:
        shortest = 1000 * state.shortest_step()  # s -> ms
        why = f"a decode step of one request takes {shortest:.1f} ms, TPOT must be {1000 * tpot_s:g} ms"
        return Skipped(choice.name, "bound", why, price * choice.num_gpus, choice=choice)
    return Candidate(choice, price, choice.num_gpus, bound)
