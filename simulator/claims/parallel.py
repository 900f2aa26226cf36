"""Tensor parallelism: what 2, 4 and 8 GPUs give one request.

gpt-fast's README (pytorch-labs/gpt-fast, 32971d31) prints tokens per second of one request with a prompt of 5 tokens in
bf16 on A100-80GB limited to 330 W, for 1 to 8 GPUs. Every layer ends in two all-reduces that do not shrink, so the gain
is below the number of GPUs, and further below for a small model.
"""

from __future__ import annotations

import numpy as np

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Workloads
from simulator.claims.runs import served
from simulator.workload import Trace

__all__ = ["CLAIMS", "README", "tokens_per_second"]

README = {
    "llama-2-7b": {1: 104.9, 2: 168.84, 4: 254.02, 8: 328.43},
    "llama-2-70b": {2: 21.32, 4: 38.01, 8: 62.5},
}
"""Tokens/s of the README by model and GPUs."""
OUTPUT = 200


def tokens_per_second(model: str, num_gpus: int, gpu: str = "a100-sxm-80gb") -> float:
    """Decode rate of one request of 5 tokens on gpt-fast."""
    trace = Trace.from_columns(np.zeros(1), np.array([5]), np.array([OUTPUT]))
    result = served(
        trace, model=model, gpu=gpu, system="gpt-fast", tensor_parallel_size=num_gpus, dtype="bf16"
    )
    return OUTPUT / float(result.records.finish_time[0])


def run(workloads: Workloads) -> Outcome:
    """Decode rate over the GPUs, and its gain over the fewest."""
    ours: dict[str, Range] = {}
    rows: list[tuple[str, ...]] = [("tokens/s", *(f"TP{n}" for n in (1, 2, 4, 8)))]
    for model, stated in README.items():
        found = {n: tokens_per_second(model, n) for n in stated}
        fewest = min(found)
        ours |= {_label(model, n): Range.of(found[n] / found[fewest]) for n in found if n > fewest}
        for name, rates in (("published", stated), ("ours", found)):
            rows.append(
                (f"{model}, {name}", *(f"{rates[n]:.1f}" if n in rates else "" for n in (1, 2, 4, 8)))
            )
    return Outcome(ours, tuple(rows), (), "one request, 5 tokens in")


def _label(model: str, n: int) -> str:
    return f"{model}, {n} GPUs over {min(README[model])}"


CLAIMS = (
    Claim(
        id="tensor-parallel",
        title="Tensor parallelism, tokens/s of one request",
        source="gpt-fast README, 32971d31",
        setup="gpt-fast, bf16, A100-80GB with NVLink, batch of 1",
        unknown="length of the output; the GPUs were limited to 330 W of 400",
        why="all-reduces of a few kB cost their latency, which is the collective library's and was measured elsewhere",
        published=tuple(
            Published(
                _label(model, n), round(rate / rates[min(rates)], 2), round(rate / rates[min(rates)], 2)
            )
            for model, rates in README.items()
            for n, rate in rates.items()
            if n > min(rates)
        ),
        run=run,
    ),
)
