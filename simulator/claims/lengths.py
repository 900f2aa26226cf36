"""The lengths behind the claims: drawn with the moments that are published, or read where the data is at hand.

Claims rest on data sets that are not part of the project. What is published of them stands here with its source:
vLLM's paper prints mean lengths, other sources quantiles. Lengths are drawn with exactly those; a folder of traces
replaces what it holds (`Workloads`).

Means of ShareGPT and Alpaca: Kwon et al., SOSP 2023 (arXiv 2309.06180), figure 11. Their spread is only drawn there;
a lognormal is assumed, for ShareGPT with the spread of Sarathi-Serve's file of its lengths (standard deviation of the
logarithm 1.63 and 1.0), for Alpaca's one-line instructions 0.5 and 1.0. Cut as vLLM's throughput benchmark does:
prompts to 1024 tokens, prompt and output together to 2048. That benchmark's own selection of ShareGPT has other means:
202 and 179 ("vLLM v0.6.0", blog.vllm.ai, 2024-09-05).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload import Trace, generate_trace, read_trace
from simulator.workload.lengths import Lengths

__all__ = [
    "ALPACA",
    "LONGEST",
    "SHAREGPT",
    "SHAREGPT_SELECTED",
    "CutLognormal",
    "Dataset",
    "Workloads",
    "quantile_lengths",
]

Ints = NDArray[np.int64]
LONGEST = 2048
"""Prompt and output together (vLLM, benchmarks/benchmark_throughput.py); the context of LLaMA and OPT too."""
LONGEST_PROMPT = 1024
CELLS = 2000
"""Quantiles by which the mean of a cut distribution is computed."""
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / CELLS) for i in range(CELLS)])


@dataclass(frozen=True)
class CutLognormal:
    """A lognormal of log-spread *sigma*, cut to [*low*, *high*], whose *mean* after the cut is the one stated."""

    mean: float
    sigma: float
    low: int
    high: int

    @property
    def median(self) -> float:
        """The median before the cut that gives the mean after it, by bisection."""
        below, above = math.log(self.low), math.log(self.high) + self.sigma**2
        for _ in range(60):
            middle = (below + above) / 2
            cut = np.clip(np.exp(middle + self.sigma * _NORMAL), self.low, self.high)
            below, above = (middle, above) if cut.mean() < self.mean else (below, middle)
        return math.exp(below)

    def draw(self, n: int, generator: np.random.Generator) -> Ints:
        """*n* lengths, int64."""
        parameters = {"median": self.median, "sigma": self.sigma, "min": self.low, "max": self.high}
        return Lengths("lognormal", parameters).draw(n, generator)


@dataclass(frozen=True)
class Dataset:
    """A data set of prompts and outputs by what is published of it."""

    name: str
    prompt: CutLognormal
    output: CutLognormal
    source: str

    def draw(self, n: int, seed: int = 0) -> tuple[Ints, Ints]:
        """Prompts and outputs of *n* requests; the two are independent."""
        streams = np.random.default_rng(seed).spawn(2)
        prompt, output = self.prompt.draw(n, streams[0]), self.output.draw(n, streams[1])
        return prompt, np.minimum(output, LONGEST - prompt)


SHAREGPT = Dataset(
    "ShareGPT",
    CutLognormal(161.31, 1.63, 4, LONGEST_PROMPT),
    CutLognormal(337.99, 1.0, 4, LONGEST - LONGEST_PROMPT),
    "means 161.31 and 337.99 of arXiv 2309.06180, figure 11; lognormal assumed",
)
SHAREGPT_SELECTED = Dataset(
    "ShareGPT, selected",
    CutLognormal(202, 1.63, 4, LONGEST_PROMPT),
    CutLognormal(179, 1.0, 4, LONGEST - LONGEST_PROMPT),
    "means 202 and 179 of vLLM's benchmark (blog.vllm.ai, 2024-09-05); lognormal assumed",
)
ALPACA = Dataset(
    "Alpaca",
    CutLognormal(19.31, 0.5, 4, LONGEST_PROMPT),
    CutLognormal(58.45, 1.0, 4, LONGEST - LONGEST_PROMPT),
    "means 19.31 and 58.45 of arXiv 2309.06180, figure 11; lognormal assumed",
)


def quantile_lengths(points: Sequence[tuple[float, float]], n: int, generator: np.random.Generator) -> Ints:
    """*n* lengths whose distribution function goes straight from one (probability, length) of *points* to the next."""
    probability, length = zip(*points, strict=True)
    drawn: Ints = np.rint(np.interp(generator.random(n), probability, length)).astype(np.int64)
    return np.maximum(drawn, 1)


@dataclass(frozen=True)
class Workloads:
    """Lengths and traces for the claims. *folder* (searched with its subfolders) replaces what it holds:
    ``ShareGPT*.json`` and Mooncake's ``conversation_trace.jsonl``.
    """

    folder: Path | None = None
    _read: dict[str, Trace] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(self.folder, "must be a folder of traces")

    def sharegpt(self, n: int, seed: int = 0) -> tuple[Ints, Ints, str]:
        """Prompts, outputs and where they come from; a request that vLLM's benchmark leaves out is left out."""
        path = self._find("ShareGPT*.json")
        if path is None:
            return *SHAREGPT.draw(n, seed), SHAREGPT.source
        if "sharegpt" not in self._read:
            self._read["sharegpt"] = read_trace(
                path, format="sharegpt", characters_per_token=4, request_rate=math.inf
            )
        trace = self._read["sharegpt"]
        prompt, output = trace.input_length, trace.output_length
        kept = (prompt >= 4) & (output >= 4) & (prompt <= LONGEST_PROMPT) & (prompt + output <= LONGEST)
        row = np.random.default_rng(seed).choice(np.flatnonzero(kept), n)
        return prompt[row], output[row], f"{path.name}, 4 characters a token"

    def mooncake(self, n: int | None = None) -> tuple[Trace, str]:
        """Mooncake's conversations, the first *n* of them, or sessions with their published figures."""
        path = self._find("conversation_trace.jsonl")
        if path is not None:
            return read_trace(path, limit=n), f"{path.name} of Mooncake, FAST 2025"
        return _mooncake_like(12_031 if n is None else n), MOONCAKE_LIKE

    def _find(self, pattern: str) -> Path | None:
        return None if self.folder is None else min(self.folder.rglob(pattern), default=None)


MOONCAKE_LIKE = (
    "sessions with the figures of Mooncake's trace (mean prompt 12,035 and output 343 tokens, 3.4 requests/s, 38.7 % "
    "of requests go on with a conversation, after 123 s in the median); lognormal and geometric assumed"
)


def _mooncake_like(n: int, seed: int = 0) -> Trace:
    """Sessions by what is known of Mooncake's conversation trace; all start with one block of 512 tokens, as there.

    A conversation ends after each turn with probability 1 - 0.387, so a mean prompt holds as many messages as a
    session has turns, and all the answers between them.
    """
    turns = 1 / (1 - 0.387)
    message = CutLognormal((12_035 - 512 - 343 * (turns - 1)) / turns, 1.2, 16, 120_000)
    spread = {"median": message.median, "sigma": message.sigma, "min": message.low, "max": message.high}
    return generate_trace(
        n,
        request_rate=3.4 / turns,
        input_length=Lengths("lognormal", spread),
        output_length=Lengths("lognormal", {"mean": 343, "sigma": 0.8, "min": 1, "max": 2000}),
        turns=Lengths("geometric", {"mean": turns}),
        think_time=123 / math.log(2),  # mean of an exponential with that median, s
        num_prefixes=1,
        prefix_length=Lengths("fixed", {"value": 512}),
        seed=seed,
    )
