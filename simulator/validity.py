"""What a result rests on: which laws were measured on the device, and where a run went beyond what they were fitted to.

Both are read off after the run: the laws from the operators of a step, the batches from the recorded series. A law is
an honest formula outside its data too, but nobody has checked it there; so a run says how far it went and for what
share of its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwprofiles import HardwareProfile, Law
from simulator.results import Records, StepSeries
from simulator.results.series import busy_points
from simulator.steptime import StepTime
from simulator.steptime.attention import kv_laws
from simulator.steptime.laws import LawSet

__all__ = ["Excursion", "excursions", "footing", "laws_used"]

Vector = NDArray[np.float64]
LEAST_SHARE = 1e-3
"""Share of the time below which an excursion is not worth a reader's attention."""
SMALL = 0.5
"""Share of the smallest measured coordinate down to which a law, which is flat there, counts as measured."""
OF_DEVICE = ("measured", "fitted")
WORDS = {
    "measured": "measured on this device",
    "fitted": "fitted to measurements of this device",
    "scaled": "scaled from another device or format",
    "datasheet": "from the datasheet",
    "default": "assumed",
}
UNITS = {
    "m": "tokens in a step",
    "num_tokens": "tokens in a step",
    "num_seqs": "decoding sequences",
    "sum_context": "tokens of context in a batch",
    "max_context": "tokens of context on average",
    "keys": "tokens in a prompt",
    "moved": "bytes moved by a kernel",
    "message": "bytes in a message",
}


@dataclass(frozen=True)
class Excursion:
    """A coordinate of a law that left the range [low, high] of its data, as far as *value*.

    *share* is that of the time in iterations, or for prompts of the requests.
    """

    law: str
    coordinate: str
    value: float
    low: float
    high: float
    share: float

    def text(self) -> str:
        """One line for a reader."""
        of = "requests" if self.coordinate == "keys" else "time"
        return (
            f"{self.law}: {self.value:,.0f} {UNITS[self.coordinate]}, measured from {self.low:,.0f} to "
            f"{self.high:,.0f}; outside for {100 * self.share:.3g} % of the {of}"
        )


def laws_used(steptime: StepTime) -> list[Law]:
    """The laws that a step of this model in these formats asks for; none where step times come from elsewhere."""
    laws = getattr(steptime, "laws", None)
    if not isinstance(laws, LawSet):
        return []
    families = ("decode_attention", "prefill_attention")
    keys = [(family, cache, "") for family in families for cache in kv_laws(steptime.precision)]
    if steptime.parallelism.context_ranks > 1:
        ranks = steptime.parallelism.context_ranks
        keys += [(op, "bf16", laws.ring(ranks)) for op in ("all_gather", "reduce_scatter")]
    for operator in steptime.operators:
        match operator.kind:
            case "gemm" | "moe":
                keys.append((operator.kind, "fp16" if operator.bits else operator.dtype, ""))
            case "elementwise":
                keys.append(("elementwise", "bf16", ""))
            case "sampling":
                keys.append(("sampling", "fp32", ""))
            case "all_reduce":
                keys += [("all_reduce", "bf16", name) for name in laws.reducers(operator.gpus)]
            case "transfer":
                keys.append(("send_recv", "bf16", ""))
            case "all_gather" | "reduce_scatter":
                keys.append((operator.kind, "bf16", laws.ring(operator.gpus)))
    return [laws.law(*key) for key in dict.fromkeys(keys)]


def footing(profile: HardwareProfile, laws: Sequence[Law]) -> str:
    """One line: calibrated or datasheet, and which laws of *laws* rest on what."""
    by_kind: dict[str, list[str]] = {}
    for law in laws:
        by_kind.setdefault(law.source.kind, []).append(name_of(law))
    own = sum(law.source.kind in OF_DEVICE for law in laws)
    verdict = "datasheet" if not own else "calibrated" if own == len(laws) else "calibrated in part"
    parts = [f"{WORDS[kind]}: {', '.join(by_kind[kind])}" for kind in WORDS if kind in by_kind]
    return f"step times: {verdict}, profile {profile.name}; {'; '.join(parts)}"


def name_of(law: Law) -> str:
    """``gemm``, ``gemm fp8``, ``all reduce nccl``: the usual format goes without saying."""
    dtype = "" if law.dtype in ("bf16", "fp32") else law.dtype
    return " ".join(filter(None, (law.family.replace("_", " "), dtype, law.variant)))


def excursions(steptime: StepTime, series: Iterable[StepSeries], records: Records) -> list[Excursion]:
    """Where a run on *steptime* left the ranges of its laws, the largest share first."""
    laws = [law for law in laws_used(steptime) if law.range]
    batches = _Batches.of(series, steptime)
    found = list(_prompts(laws, records))
    if len(batches.tokens):
        for law in laws:
            for coordinate, values in batches.coordinates(law, steptime):
                found += _outside(law, coordinate, values, batches.seconds)
    return sorted(found, key=lambda excursion: -excursion.share)


@dataclass(frozen=True)
class _Batches:
    """The mean iteration of every point of a run, per rank; *seconds* is how long each lasted together."""

    tokens: Vector
    decodes: Vector
    rows: Vector
    context: Vector
    seconds: Vector

    @classmethod
    def of(cls, series: Iterable[StepSeries], steptime: StepTime) -> _Batches:
        columns = [_columns(one) for one in series]
        tokens, decodes, rows, context, seconds = np.concatenate([np.empty((5, 0)), *columns], axis=1)
        tokens = (
            tokens + (steptime.width - 1) * decodes
        )  # with speculation a sequence computes its drafts too
        rows = rows + (steptime.sampled - 1) * decodes
        dp = steptime.parallelism.dp
        return cls(np.ceil(tokens / dp), np.ceil(decodes / dp), np.ceil(rows / dp), context / dp, seconds)

    def coordinates(self, law: Law, steptime: StepTime) -> Iterator[tuple[str, Vector]]:
        """What the batches are in the coordinates of *law*."""
        match law.family:
            case "gemm":
                yield "m", self.tokens
            case "moe":
                yield "num_tokens", self.tokens * steptime.parallelism.dp
            case "decode_attention":
                yield "num_seqs", self.decodes
                yield "sum_context", np.where(self.decodes > 0, self.context, 0.0)
                yield (
                    "max_context",
                    np.where(self.decodes > 0, self.context / np.maximum(self.decodes, 1), 0.0),
                )
            case "elementwise":
                yield "moved", self._largest(steptime, "elementwise")
            case "sampling":
                passes = law.coefficients.get("passes", 1.0)
                yield "moved", 4.0 * passes * self.rows * steptime.model.vocab_size
            case "all_reduce" | "all_gather" | "reduce_scatter":
                yield "message", self._largest(steptime, law.family)
            case "send_recv":
                yield "message", self._largest(steptime, "transfer")

    def _largest(self, steptime: StepTime, kind: str) -> Vector:
        """Bytes of the operator of *kind* that moves most; logits are of sampled rows, not of every token."""
        along = {
            "tokens": self.tokens,
            "all_tokens": self.tokens * steptime.parallelism.dp,
            "rows": self.rows,
        }
        moved = [
            along[operator.axis] * operator.width for operator in steptime.operators if operator.kind == kind
        ]
        return np.max(moved, axis=0) if moved else np.zeros_like(self.tokens)


def _columns(series: StepSeries) -> Vector:
    """tokens, decodes, rows, context, seconds of the points with iterations, [5, n]."""
    point = busy_points(series)
    prefill, decodes = point["prefill_tokens"] / point["iterations"], point["num_decodes"]
    held = point["kv_blocks_used"] * series.block_size - point["waste_reserved"] - point["waste_internal"]
    context = np.maximum(held - prefill, decodes)
    return np.stack([prefill + decodes, decodes, point["num_running"], context, point["duration_s"]])


def _outside(law: Law, coordinate: str, values: Vector, seconds: Vector) -> list[Excursion]:
    if coordinate not in law.range:
        return []
    low, high = law.range[coordinate]
    total = float(seconds.sum())
    beyond, below = values > high, (values < SMALL * low) & (values > 0)
    share = float(seconds[beyond | below].sum()) / total if total else 0.0
    if share < LEAST_SHARE:
        return []
    worst = values[beyond].max() if beyond.any() else values[below].min()
    return [Excursion(name_of(law), coordinate, float(worst), low, high, share)]


def _prompts(laws: Sequence[Law], records: Records) -> Iterator[Excursion]:
    """Prompts longer than any sequence that prefill attention was measured on."""
    lengths = records.input_length[np.isfinite(records.first_scheduled_time)]
    for law in laws:
        if law.family != "prefill_attention" or "chunk" not in law.range or not len(lengths):
            continue
        low, high = law.range["chunk"][0], law.range["chunk"][1] + law.range.get("context", (0, 0))[1]
        share = float((lengths > high).mean())
        if share >= LEAST_SHARE:
            yield Excursion(name_of(law), "keys", float(lengths.max()), low, high, share)
