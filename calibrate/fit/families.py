"""What is fitted for every operator family: coefficients, the grid of the correction, and how rows are held
out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.tables import COLUMNS
from simulator.steptime.law_form import OperatorLaw
from simulator.steptime.law_moe import touched_experts
from simulator.steptime.law_move import MOVES

__all__ = ["FAMILIES", "Axis", "Family", "argument_names", "arguments", "predict_rows"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a correction in log2: fixed knots, or a number of them at quantiles of the shapes."""

    name: str
    knots: tuple[float, ...] | int
    stiffness: float
    """Weight of the squared second difference along the axis (first difference between two knots)."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the law of one operator family is fitted."""

    form: str
    start: Mapping[str, float]
    """Coefficients with the values the search starts from and is weakly drawn to."""
    axes: tuple[Axis, ...]
    """Of the correction; a family without any is never corrected."""
    shape: tuple[str, ...]
    """Columns that make a shape: all rows of a shape are held out together."""
    choices: tuple[Mapping[str, float], ...] = ({},)
    """Coefficients that are chosen and not searched, e.g. how a kernel packs heads."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Coefficients that most tables cannot tell; see `searched`."""
    least_rows: int = 60
    """Rows from which a correction is fitted on top of the smooth law."""


def _octaves(*knots: float) -> tuple[float, ...]:
    return knots


RING = Family(
    form="ring",
    start={
        "t0_2": 6e-6,
        "t0_4": 8e-6,
        "t0_8": 1.2e-5,
        "eb_2": 0.6,
        "eb_4": 0.6,
        "eb_8": 0.6,
        "p": 1.2,
        "second": 4e-6,
    },
    axes=(
        Axis("message", _octaves(8, 12, 16, 18, 19, 20, 21, 22, 23, 25, 28), 0.02),
        Axis("num_gpus", _octaves(1, 2, 3), 0.02),
    ),
    shape=("message", "num_gpus"),
    least_rows=30,
)
CUSTOM_CHOICES = tuple(
    {"shots": shots, "hands_over": hands_over} for shots, hands_over in ((1.0, 0.0), (2.0, 0.0), (2.0, 1.0))
)
REDUCE = replace(RING, start={**RING.start, "second": 4e-6, "relay": 1e-5}, choices=CUSTOM_CHOICES)
STREAM = Family(
    form="stream",
    start={"t0": 3e-6, "eb": 0.8},
    axes=(Axis("moved", 8, 0.05),),
    shape=("moved",),
)

MOVE = Family(
    form="copies",
    start={"t0": 1e-5, "call": 2e-6, "eb": 0.8},
    axes=(),
    shape=("moved", "copies"),
)

SEND = Family(
    form="link",
    start={"t0": 1e-5, "eb": 0.8},
    axes=(Axis("message", 8, 0.05),),
    shape=("message",),
)

SKEW = 0.04
"""Share of the imbalance that a skewed decode batch pays, assumed where no table holds such batches."""
SKEWED = 1.1
"""num_seqs max / sum from which a batch counts as skewed."""

FAMILIES: dict[str, Family] = {
    "gemm": Family(
        form="tiled",
        start={
            "t0": 5e-6,
            "eb": 0.82,
            "p": 1.8,
            "wave": 0.7,
            "ec_256": 0.82,
            "ec_128": 0.77,
            "ec_64": 0.69,
            "ec_32": 0.57,
        },
        axes=(
            Axis("m", _octaves(0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), 0.01),
            Axis("n", 5, 0.03),
            Axis("k", 3, 0.03),
        ),
        shape=("n", "k"),
    ),
    "prefill_attention": Family(
        form="tiles",
        start={"t0": 1.2e-5, "ec": 0.6, "eb": 0.5, "p": 1.8, "tile": 2e-9},
        axes=(
            Axis("keys", _octaves(0, 4, 5, 6, 7, 8, 9, 10, 10.6, 11, 11.6, 12, 13, 14), 0.05),
            Axis("heads", _octaves(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), 0.05),
        ),
        shape=("n_q", "n_kv", "head_dim"),
        choices=tuple({"pack": pack, "cached": cached} for pack in (0.0, 1.0) for cached in (1.0, 0.1)),
    ),
    "decode_attention": Family(
        form="units",
        start={"t0": 1.2e-5, "ec": 0.5, "eb": 0.85, "p": 2.0, "unit": 3e-8},
        axes=(
            Axis("memory_us", _octaves(-3, 0, 2, 3, 4, 5, 6, 7, 8, 10), 0.05),
            Axis("units", _octaves(0, 3, 5, 6, 7, 8, 9, 10, 11, 13), 0.05),
            Axis("n_kv", _octaves(0, 3), 0.3),
        ),
        shape=("n_q", "n_kv", "head_dim"),
        fixed={"skew": SKEW},
    ),
    "moe": Family(
        form="experts",
        start={"t0": 2e-5, "ec": 0.6, "eb": 0.82, "ea": 0.6, "p": 1.5},
        axes=(
            Axis("rows_per_expert", _octaves(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), 0.05),
            Axis("matrix", _octaves(17, 19, 21, 23, 25), 0.1),
        ),
        shape=("hidden", "inter", "tp", "ep"),
    ),
    "all_reduce": REDUCE,
    "all_gather": RING,
    "reduce_scatter": RING,
    "all_to_all": RING,
    "send_recv": SEND,
    "elementwise": STREAM,
    "kv_write": STREAM,
    "sampling": Family("stream", {"t0": 4e-5, "eb": 0.6}, STREAM.axes, STREAM.shape, fixed={"passes": 1.0}),
    **dict.fromkeys(MOVES, MOVE),
}


def searched(family: str, frame: pd.DataFrame) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """(coefficients to search with their start, coefficients the rows of *frame* cannot tell)."""
    spec = FAMILIES[family]
    if family == "decode_attention":
        imbalance = frame["num_seqs"] * frame["max_context"] / frame["sum_context"]
        if (imbalance > SKEWED).any():
            return {**spec.start, **spec.fixed}, {}
    if family in MOVES and frame["copies"].nunique() == 1:  # beginning is not told from calling
        return {name: value for name, value in spec.start.items() if name != "t0"}, {"t0": 0.0}
    if "num_gpus" in frame:
        told = anchors(frame["num_gpus"])
        left_open = {f"{name}_{count}" for name in ("t0", "eb") for count in GROUPS if count not in told}
        return {name: value for name, value in spec.start.items() if name not in left_open}, {}
    return spec.start, spec.fixed


GROUPS = (2, 4, 8)
"""Sizes of groups that a collective's law has coefficients for."""


def anchors(num_gpus: Iterable[float]) -> list[int]:
    """Those of `GROUPS` whose coefficients measurements with *num_gpus* ranks tell: the neighbours of each."""
    told = set()
    for count in num_gpus:
        told |= {max((size for size in GROUPS if size <= count), default=2)}
        told |= {min((size for size in GROUPS if size >= count), default=8)}
    return sorted(told)


def with_all_groups(family: str, coefficients: Mapping[str, float]) -> dict[str, float]:
    """*coefficients* of a collective, those of groups that were not measured in proportion to the nearest that was."""
    start, found = FAMILIES[family].start, dict(coefficients)
    told = [count for count in GROUPS if f"t0_{count}" in coefficients]
    for count in GROUPS:
        near = min(told, key=lambda size: abs(size - count))
        for name in ("t0", "eb"):
            ratio = start[f"{name}_{count}"] / start[f"{name}_{near}"]
            found.setdefault(f"{name}_{count}", coefficients[f"{name}_{near}"] * ratio)
    return found


def choices(family: str, variant: str) -> tuple[Mapping[str, float], ...]:
    """What held-out error may choose between; shots and handing over are the custom kernel's alone."""
    offered = FAMILIES[family].choices
    return offered[:1] if variant == "nccl" else offered


def arguments(family: str, frame: pd.DataFrame) -> list[NDArray[np.float64]]:
    """The arrays that the law of *family* takes, from the rows of *frame*."""
    columns = [frame[name].to_numpy(float) for name in COLUMNS[family]]
    return [*columns, _experts(frame)] if family == "moe" else columns


def argument_names(family: str) -> tuple[str, ...]:
    """Names of `arguments`, in their order."""
    return (*COLUMNS[family], "experts") if family == "moe" else COLUMNS[family]


def _experts(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Touched experts of every row."""
    experts = np.zeros(len(frame))
    tokens = frame["num_tokens"].to_numpy(float)
    routing = list(zip(frame["topk"], frame["num_experts"], frame["distribution"], strict=True))
    for topk, num_experts, distribution in dict.fromkeys(routing):
        rows = np.array([row == (topk, num_experts, distribution) for row in routing])
        experts[rows] = touched_experts(tokens[rows], int(topk), int(num_experts), str(distribution))
    return experts


def predict_rows(law: OperatorLaw, family: str, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Seconds of every row of *frame* by *law*."""
    return np.asarray(law(*arguments(family, frame)), dtype=float)
