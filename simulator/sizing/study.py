"""A study: a grid or samples over anything in a deployment and its traffic, as a list of runs that never changes.

    trace: chat.jsonl                 # or several, as an axis
    num_prompts: 1000
    base: {model: llama-3.1-8b, gpu: h100}
    grid:                             # the product of all axes
      gpu: [h100, l40s]
      request_rate: [2, 4, 8]
      max_num_seqs: [64, 256]
    samples:                          # or, instead of a grid, so many draws
      count: 100
      over: {request_rate: {low: 1, high: 20, log: true}, gpu: [h100, l40s]}
    seeds: 3                          # replications of each point
    goodput: [ttft:2000]

Seed s of every point sees the same traffic: seed 0 the trace itself, the others the same bootstrap of it (common random
numbers), so that differences between points are the points' own. A run is known by the hash of what determines it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprofiles import load_profile
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, InputError, SimError, UnknownNameError
from simulator.mapping_file import read_mapping
from simulator.models import load_model
from simulator.results import parse_goodput
from simulator.scheduling.system import find_system
from simulator.sizing.options import is_option, unfold

__all__ = ["Run", "Study"]

FIELDS = ("trace", "num_prompts", "request_rate", "base", "grid", "samples", "seeds", "seed", "goodput")
TRAFFIC = ("trace", "num_prompts", "request_rate")
"""What a point may set beside the options of a deployment."""


@dataclass(frozen=True)
class Run:
    """One simulation: its *point* (the axes' values), what determines it, and its place in the study."""

    index: int
    point: Mapping[str, Any]
    deployment: Mapping[str, Any]
    trace: str
    num_prompts: int | None
    request_rate: float | None
    seed: int
    goodput: tuple[str, ...]

    @property
    def key(self) -> str:
        """Hash of everything that determines the result but the trace's content, 16 hex digits."""
        determined = {name: value for name, value in vars(self).items() if name not in ("index", "point")}
        text = json.dumps(determined, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """All runs of a study file, in order. *axes*: the names of what varies."""

    path: Path
    runs: tuple[Run, ...]
    axes: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study. Raises `InputError` naming the field, what it holds and what is allowed."""
        file = Path(path)
        entries = _entries(file)
        points = _points(file, entries)
        axes = tuple(dict.fromkeys(name for point in points for name in point))
        seeds = _whole(file, "seeds", entries.get("seeds", 1))
        _check_goodput(file, entries)
        runs = [_run(file, entries, point, seed) for point in points for seed in range(seeds)]
        runs = [Run(**{**vars(run), "index": i}) for i, run in enumerate(runs)]
        if len({run.key for run in runs}) < len(runs):
            raise InputError(
                file, "two points are the same run", field="grid" if "grid" in entries else "samples"
            )
        return cls(file, tuple(runs), axes)

    @property
    def digest(self) -> str:
        """Of all runs and the content of their traces, profiles and models: the same study gives the same."""
        hashes = hashlib.sha256("".join(run.key for run in self.runs).encode())
        for trace in sorted({run.trace for run in self.runs}):
            hashes.update(Path(trace).read_bytes())
        deployed = [Deployment.of(**run.deployment) for run in self.runs]
        for gpu in sorted({one.gpu for one in deployed}):
            hashes.update(load_profile(gpu).model_dump_json().encode())
        for model in sorted({one.model for one in deployed}):
            hashes.update(repr(load_model(model)).encode())
        return hashes.hexdigest()[:16]


def _entries(path: Path) -> dict[str, Any]:
    entries = read_mapping(path, ": trace, base, grid or samples")
    for name in entries:
        if name not in FIELDS:
            raise UnknownNameError(f"field of {path.name}", str(name), FIELDS)
    if "trace" not in entries and "trace" not in (entries.get("grid") or {}):
        raise InputError(path, "is missing: the path of a trace", field="trace")
    return entries


def _points(path: Path, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    if ("grid" in entries) == ("samples" in entries):
        raise InputError(path, "needs a grid or samples, one of the two")
    if "grid" in entries:
        axes = _axes(path, "grid", entries["grid"])
        for name, values in axes.items():
            if not isinstance(values, list) or not values:
                raise InputError(
                    path, "must be a list with at least one value", field=f"grid.{name}", value=values
                )
        return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    samples = entries["samples"]
    if not isinstance(samples, dict) or "over" not in samples:
        raise InputError(path, "must hold count and over", field="samples", value=samples)
    axes = _axes(path, "samples.over", samples["over"])
    count = _whole(path, "samples.count", samples.get("count"))
    rng = np.random.default_rng(int(entries.get("seed", 0)))
    columns = {
        name: _draw(path, name, how, count, generator)
        for (name, how), generator in zip(axes.items(), rng.spawn(len(axes)))
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _axes(path: Path, field: str, axes: Any) -> dict[str, Any]:
    if not isinstance(axes, dict) or not axes:
        raise InputError(path, "must be a mapping from option to values", field=field, value=axes)
    known = (*Deployment.model_fields, *TRAFFIC)
    for name in axes:
        if name not in known and not is_option(str(name)):
            raise UnknownNameError(f"axis of {path.name}", str(name), known)
    return axes


def _draw(path: Path, name: str, how: Any, count: int, rng: np.random.Generator) -> list[Any]:
    """*count* values of one axis: from a list, or from a range, evenly or log-evenly; whole where both ends are."""
    if isinstance(how, list) and how:
        return [how[i] for i in rng.integers(0, len(how), count).tolist()]
    if not isinstance(how, dict) or not {"low", "high"} <= set(how) <= {"low", "high", "log"}:
        raise InputError(path, "must be a list or {low, high, log}", field=f"samples.over.{name}", value=how)
    low, high = how["low"], how["high"]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise InputError(path, "low must be below high", field=f"samples.over.{name}", value=how)
    if how.get("log") and low <= 0:
        raise InputError(path, "low must be above 0 with log", field=f"samples.over.{name}", value=how)
    drawn = (
        np.exp(rng.uniform(math.log(low), math.log(high), count))
        if how.get("log")
        else rng.uniform(low, high, count)
    )
    whole = isinstance(low, int) and isinstance(high, int) and name != "request_rate"
    return [round(value) if whole else value for value in drawn.tolist()]


def _run(path: Path, entries: Mapping[str, Any], point: Mapping[str, Any], seed: int) -> Run:
    traffic = {name: point.get(name, entries.get(name)) for name in TRAFFIC}
    base = entries.get("base") or {}
    if not isinstance(base, dict):
        raise InputError(path, "must be a mapping of deployment options", field="base", value=base)
    stated = unfold(base | {name: value for name, value in point.items() if name not in TRAFFIC})
    try:
        deployment = Deployment.of(**stated)
        _check_names(deployment)
    except SimError as error:
        raise InputError(path, str(error), field="base" if not point else str(dict(point))) from None
    trace = path.parent / str(traffic["trace"])
    if not trace.is_file():
        raise InputError(path, "no such file", field="trace", value=str(traffic["trace"]))
    rate, prompts = traffic["request_rate"], traffic["num_prompts"]
    if rate is not None and not (isinstance(rate, int | float) and rate > 0):
        raise InputError(path, "must be above 0", field="request_rate", value=rate)
    return Run(
        0, dict(point), deployment.model_dump(exclude_unset=True), str(trace),
        None if prompts is None else _whole(path, "num_prompts", prompts),
        None if rate is None else float(rate), seed, tuple(entries.get("goodput") or ()),
    )  # fmt: skip


def _check_names(deployment: Deployment) -> None:
    """A model, GPU or system that does not exist is a mistake, and not a run that cannot be."""
    load_model(deployment.model)
    load_profile(deployment.gpu)
    find_system(deployment.system)


def _check_goodput(path: Path, entries: Mapping[str, Any]) -> None:
    try:
        parse_goodput(entries.get("goodput") or ())
    except ConfigurationError as error:
        raise InputError(path, str(error), field="goodput") from None


def _whole(path: Path, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(path, "must be a whole number from 1", field=field, value=value)
    return value
