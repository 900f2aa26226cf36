"""FLOPs and bytes of every operator of a step, beside its seconds: what an estimate prints.

Counts are per GPU, at exact batch sizes: no padding to graph sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.models import LayerSpec
from simulator.models.spec import attended_pairs
from simulator.steptime.materialised import score_bytes
from simulator.steptime.operators import Operator

if TYPE_CHECKING:
    from simulator.steptime.steptime import Prefills, StepTime

__all__ = ["OperatorWork", "step_work"]


@dataclass(frozen=True)
class OperatorWork:
    """One operator of a step on one GPU: *flops*, *bytes* of memory, and *seconds* by the law.

    *compute_s* and *memory_s* are the two sides of its roofline.
    """

    name: str
    family: str
    flops: float
    bytes: float
    compute_s: float
    memory_s: float
    seconds: float

    @property
    def bound(self) -> str:
        """Which side takes longer at peak rates."""
        if self.flops == 0 and self.bytes == 0:
            return "link"
        return "compute" if self.compute_s > self.memory_s else "bandwidth"


def step_work(
    step: StepTime, num_decodes: int, decode_context: int, prefills: Prefills = ()
) -> list[OperatorWork]:
    """The operators of one forward, in the order of execution within a layer, attention last; then those of a draft."""
    num_decodes, decode_context, prefills = step.recast(num_decodes, decode_context, prefills)
    tokens = step.new_tokens(num_decodes) + sum(chunk for chunk, _ in prefills)
    if prefills:
        tokens = -(-tokens // step.parallelism.pcp)
    rows = step.logits_rows(num_decodes) + len(prefills)
    found = [_operator(step, operator, tokens, rows) for operator in step.operators]
    found += _attention(step, num_decodes, decode_context, prefills)
    for draft, times, batch in step.drafts(num_decodes, decode_context, prefills):
        found += [_of_draft(work, times) for work in step_work(draft, *batch)]
    return found


def _of_draft(work: OperatorWork, times: int) -> OperatorWork:
    """An operator of a draft's forward that runs *times* in a step."""
    counts = {
        name: times * getattr(work, name) for name in ("flops", "bytes", "compute_s", "memory_s", "seconds")
    }
    return replace(work, name=f"draft {work.name}", **counts)


def _operator(step: StepTime, operator: Operator, tokens: int, rows: int) -> OperatorWork:
    count = float(rows if operator.axis == "rows" else tokens)
    local = count if operator.axis == "all_tokens" else np.ceil(count / step.parallelism.dp)
    routed = operator.kind == "moe"
    stored = (step.precision.experts if routed else step.precision.linear).bytes
    if operator.family == "lm_head":
        stored = step.precision.lm_head.bytes
    elif operator.dtype == "bf16":
        stored = 2.0
    flops, moved = operator.work(float(local), stored)
    seconds = float(operator.seconds(step.laws, np.array([float(local)]))[0])
    peak = step.laws.peak_flops(operator.dtype)
    return OperatorWork(
        operator.name, operator.family, flops, moved, flops / peak, moved / step.laws.bandwidth, seconds
    )


def _attention(
    step: StepTime, num_decodes: int, decode_context: int, prefills: Prefills
) -> Iterator[OperatorWork]:
    parts = step.breakdown(num_decodes, decode_context, prefills)
    for family in ("prefill_attention", "decode_attention"):
        if family in parts:
            decodes, chunks = ((), prefills) if family[0] == "p" else ((num_decodes, decode_context), ())
            sums = [_layer_work(step, layer, decodes, chunks) for layer in step.model.layers]
            flops, moved = sum(f for f, _ in sums), sum(b for _, b in sums)
            compute, memory = flops / step.laws.peak_flops("bf16"), moved / step.laws.bandwidth
            yield OperatorWork(family, family, flops, moved, compute, memory, parts[family])


def _layer_work(
    step: StepTime, layer: LayerSpec, decodes: tuple[int, ...], prefills: Prefills
) -> tuple[float, float]:
    """(FLOPs, bytes) of the attention of one group of layers; bytes are keys and values read once, and scores."""
    parallel, window = step.parallelism, layer.window
    part, dp = layer.attention.shard(parallel.tp), parallel.dp
    kv, flash = part.kv_numbers * step.precision.cache.bytes, step.kernels.flash_attention
    flops = moved = 0.0
    if decodes:
        q, n_kv, d = part.decode_heads
        seen = decodes[1] if window is None else min(decodes[1], decodes[0] * window)
        # of dcp ranks each attends with the heads of all of them to its part
        flops = 4.0 * step.width * q * d * seen / parallel.pcp
        moved = kv * seen / parallel.context_ranks
        moved += 0.0 if flash else score_bytes(step.width * seen, seen, q, n_kv, d)
    for chunk, context in prefills:
        q, n_kv, d = part.prefill_heads
        keys = chunk + context
        pairs = attended_pairs(chunk, context, window) if flash else chunk * keys
        flops += 4.0 * q * d * pairs / parallel.pcp
        moved += 4.0 * q * d * chunk / parallel.pcp + 2.0 * n_kv * d * step.precision.cache.bytes * keys
        moved += 0.0 if flash else score_bytes(pairs, keys, q, n_kv, d)
    return layer.count * flops / dp, layer.count * moved / dp
