"""What the host and the serving system add to the operators of a step.

A step costs the CPU scheduling, input preparation and output handling; it overlaps with the GPU or not.
Kernels are replayed from a CUDA graph, whose batch sizes are fixed so that a batch is padded to the next
one, or launched one by one, in which case a small step waits for its launches. The figures per system are
in ``data/traits.yaml``, each with source and status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from simulator.errors import ConfigurationError, UnknownNameError
from simulator.steptime.engine_costs import EngineCosts, Spread, engine_costs

__all__ = ["LAYER_OVERHEAD_S", "HostTraits", "list_traits", "load_traits", "nearest_traits"]

LAYER_OVERHEAD_S = 10e-6
"""Gaps between kernels and kernels that no law covers, per layer, where a profile does not say. Assumed."""

NO_COSTS = EngineCosts()


@dataclass(frozen=True)
class HostTraits:
    """Host and launch behaviour of one system; seconds.

    *graph_sizes* are the captured batch sizes in rising order (empty: no graphs), *mixed_graph* whether
    batches with prefills are replayed piecewise up to the largest of them, and padded. *enforce_eager_layer_s* holds
    instead of *eager_layer_s* where graphs and compilation are switched off. *layer_overhead_s* is negative where
    kernels of one graph overlap more than their laws, each measured alone, lose in launches.
    """

    per_step_s: float = 0.0
    per_seq_s: float = 0.0
    per_new_token_s: float = 0.0
    overlap: bool = False
    graph_sizes: tuple[int, ...] = ()
    mixed_graph: bool = False
    piecewise_layer_s: float = 0.0
    eager_layer_s: float = 0.0
    enforce_eager_layer_s: float = 0.0
    layer_overhead_s: float = LAYER_OVERHEAD_S
    mixed_attention_factor: float = 1.0
    engine: EngineCosts = NO_COSTS
    """What whole steps take beyond their operators, fitted to serving data."""
    source: str = ""
    status: str = "assumed"

    def __post_init__(self) -> None:
        for name in ("per_step_s", "per_seq_s", "per_new_token_s", "piecewise_layer_s", "eager_layer_s"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, must not be negative")
        if self.mixed_attention_factor < 1:
            raise ConfigurationError(
                f"mixed_attention_factor is {self.mixed_attention_factor}, must be at least 1"
            )
        if list(self.graph_sizes) != sorted(set(self.graph_sizes)):
            raise ConfigurationError("graph_sizes must increase")

    @property
    def graph_max_tokens(self) -> int:
        """Largest captured batch; 0 without graphs."""
        return self.graph_sizes[-1] if self.graph_sizes else 0

    def host_s(self, num_seqs: int, new_tokens: int) -> float:
        """CPU time of a step with *num_seqs* rows and *new_tokens* tokens."""
        return self.per_step_s + self.per_seq_s * num_seqs + self.per_new_token_s * new_tokens


def list_traits() -> list[str]:
    """Systems with traits, sorted."""
    return sorted(name for name in _file() if not name.startswith("_"))


def load_traits(
    system: str,
    *,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int | None = None,
    host: Any = None,
    observed: Any = None,
) -> HostTraits:
    """The traits of *system* with graph sizes resolved for its limits.

    ``vllm-0.10.1`` takes the entry that holds until its version, else that of the family. *host* is a
    profile's host block: its ``layer_overhead_s`` replaces the stated default. *observed* is what a profile says of
    this system in production (`hwprofiles.ServingCosts`): its costs replace those of step, sequence, token and request.
    """
    entry = {name: value for name, value in _file()[nearest_traits(system)].items() if name != "until"}
    entry["graph_sizes"], entry["mixed_graph"] = _graphs(
        entry.pop("graph"), max_num_seqs, max_num_batched_tokens
    )
    costs = engine_costs(nearest_traits(system))
    if costs is not None:
        entry |= {"engine": costs, "layer_overhead_s": costs.layer_s, "status": "fitted"}
        entry["mixed_attention_factor"] = 1.0 + costs.mixed_attention
        if not entry["overlap"]:  # all its host work is exposed, and so among the fitted costs
            entry |= {"per_step_s": 0.0, "per_seq_s": 0.0, "per_new_token_s": 0.0}
        entry["source"] = f"{entry['source']}; {costs.source}"
    if observed is not None:
        entry |= _observed(entry, observed)
    if host is not None:
        entry.setdefault("layer_overhead_s", host.layer_overhead_s)
    return HostTraits(**entry)


def _observed(entry: dict[str, Any], seen: Any) -> dict[str, Any]:
    """What replaces the host costs of *entry*: all that was seen is exposed, so nothing serial is left beside it."""
    costs = replace(
        entry.get("engine", NO_COSTS),
        step_s=seen.step_s,
        seq_s=seen.seq_s,
        token_s=seen.token_s,
        request_s=seen.request_s,
        spread=Spread(seen.spread_step, seen.spread_ttft),
        seen={},
        source=seen.source.text,
    )
    serial = {} if entry["overlap"] else {"per_step_s": 0.0, "per_seq_s": 0.0, "per_new_token_s": 0.0}
    return {**serial, "engine": costs, "status": "observed", "source": seen.text()}


def nearest_traits(system: str) -> str:
    """The entry that describes *system*, which may end in a version. Raises `UnknownNameError`.

    >>> nearest_traits("vllm-0.12.0"), nearest_traits("vllm-0.19")
    ('vllm-0.11', 'vllm')
    """
    name = system.lower()
    family, _, version = name.partition("-")
    if name in list_traits():
        return name
    if family not in list_traits():
        raise UnknownNameError("system", system, list_traits())
    older = (other for other in list_traits() if other.startswith(f"{family}-"))
    upto = [(_version(str(_file()[other]["until"])), other) for other in older]
    return min((entry for entry in upto if _version(version) <= entry[0]), default=((), family))[1]


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version: ``0.11.2`` is (0, 11)."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _graphs(rule: dict[str, Any], max_num_seqs: int, max_tokens: int | None) -> tuple[tuple[int, ...], bool]:
    limit = min(rule["cap"], rule["per_seq"] * max_num_seqs, max_tokens or rule["cap"])
    return _expand(rule["sizes"], limit), rule["mixed"]


def _expand(ranges: Sequence[Sequence[int]], limit: int) -> tuple[int, ...]:
    sizes = [size for first, last, step in ranges for size in range(first, last + 1, step)]
    return tuple(size for size in sizes if size <= limit)


@cache
def _file() -> dict[str, dict[str, Any]]:
    text = (files("simulator.steptime") / "data" / "traits.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded
