"""Speculative decoding: what it gains one request, and the batch at which it loses.

Chen et al., arXiv 2302.01318 (abstract): 2 to 2.5 times the decoding speed of a 70B model, one request at a time. For a
server with many the gain goes: vllm-project/vllm#17984 measured a Llama of 1B drafting for one of 70B and found the two
equal at a batch of 32. Neither states the acceptance rate of its drafts, which decides everything; it is swept.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Workloads
from simulator.claims.runs import served
from simulator.workload import Trace

__all__ = ["CLAIMS", "break_even"]

BATCHES = (1, 4, 16, 32, 64, 128, 256)
ACCEPTANCE = (0.5, 0.65, 0.8)
TOKENS = 5
PROMPT, OUTPUT = 200, 200
TARGET = {"model": "llama-3.1-70b", "gpu": "h100-sxm-80gb", "tensor_parallel_size": 4}


def run(workloads: Workloads) -> Outcome:
    """Gain in output tokens per second over the batch, for each acceptance rate."""
    plain = [_rate(batch, None) for batch in BATCHES]
    rows: list[tuple[str, ...]] = [
        ("tokens/s over those without, batch of", *(str(batch) for batch in BATCHES))
    ]
    alone, even = [], []
    for acceptance in ACCEPTANCE:
        gains = [_rate(batch, acceptance) / rate for batch, rate in zip(BATCHES, plain, strict=True)]
        rows.append((f"acceptance {acceptance}", *(f"{gain:.2f}" for gain in gains)))
        alone.append(gains[0])
        even.append(break_even(BATCHES, gains))
    ours = {ALONE: Range.of(*alone), EVEN: Range.of(*even)}
    return Outcome(ours, tuple(rows), (), f"{PROMPT} tokens in, {OUTPUT} out")


def break_even(batches: tuple[int, ...], gains: list[float]) -> float:
    """The batch at which the gain falls to 1, between two of *batches* on a scale of ratios; infinite if nowhere."""
    for i, gain in enumerate(gains):
        if gain <= 1:
            if i == 0:
                return float(batches[0])
            share = (gains[i - 1] - 1) / (gains[i - 1] - gain)
            return float(batches[i - 1] * (batches[i] / batches[i - 1]) ** share)
    return math.inf


def _rate(batch: int, acceptance: float | None) -> float:
    """Output tokens per second of *batch* requests that start together, from the first token on."""
    trace = Trace.from_columns(np.zeros(batch), np.full(batch, PROMPT), np.full(batch, OUTPUT))
    how = {"method": "draft", "model": "llama-3.2-1b", "tokens": TOKENS, "acceptance": acceptance}
    result = served(trace, **TARGET, **({} if acceptance is None else {"speculation": how}))
    decode = result.records.finish_time - result.records.first_token_time
    return batch * (OUTPUT - 1) / float(decode.mean())


ALONE, EVEN = "one request", "batch at which it stops gaining"
CLAIMS = (
    Claim(
        id="speculative-decoding",
        title="Speculative decoding gains for one request and loses in a large batch",
        source="arXiv 2302.01318, abstract; vllm-project/vllm issue 17984",
        setup=f"Llama-3.1-70B on 4 H100, drafts of {TOKENS} tokens by Llama-3.2-1B, acceptance rates of 0.5 to 0.8",
        unknown="acceptance rates of both; GPUs and draft length of the second; the first ran on TPUs",
        why="the millisecond of the host for each forward of a draft is inferred from vLLM 0.10.1; vLLM of issue 17984 "
        "scored drafts in batches expanded by their length, which brings the loss to smaller batches",
        published=(Published(ALONE, 2, 2.5), Published(EVEN, 32, 32, "requests")),
        run=run,
    ),
)
