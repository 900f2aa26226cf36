"""vLLM against Orca and FasterTransformer at rising request rates.

vLLM's paper (arXiv 2309.06180, section 6.2, figure 12): the rate of requests that a system sustains "while maintaining
similar latencies", where latency is normalised by output length. Which latency is not said; the figure's curves leave
it at 1 s per token. Here a rate is sustained if its mean is at most `BEARABLE`. Orca's three variants are the
authors' own on vLLM's engine, and so they are here (`in_vllms_engine`); FasterTransformer is itself, in batches as
large as its memory holds.
"""

from __future__ import annotations

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Ints, Workloads
from simulator.claims.runs import (
    Case,
    at_rate,
    bisect,
    in_vllms_engine,
    mean_level,
    normalized_latency,
)
from simulator.deployment import Deployment, Resolved
from simulator.simulation import simulate

__all__ = ["CLAIMS"]

CASES = (
    Case("OPT-13B, 1 A100-40GB", "opt-13b", "a100-sxm-40gb"),
    Case("OPT-66B, 4 A100-40GB", "opt-66b", "a100-sxm-40gb", 4),
    Case("OPT-175B, 8 A100-80GB", "opt-175b", "a100-sxm-80gb", 8),
)
BASELINES = ("orca-oracle", "orca-pow2", "orca-max", "fastertransformer")
NUM_REQUESTS = 1000
BEARABLE = 0.5
"""s of end-to-end latency per output token, on average."""
RISING = (0.5, 1.0, 1.5, 2.0, 2.5)
"""requests/s at which the table gives normalised latency, OPT-13B."""


def run_rates(workloads: Workloads) -> Outcome:
    """Sustained rates of all systems on the paper's three models."""
    prompt, output, lengths = workloads.sharegpt(NUM_REQUESTS)
    rows: list[tuple[str, ...]] = [("requests/s sustained", "vLLM", *BASELINES)]
    ratios: dict[str, list[float]] = {name: [] for name in BASELINES}
    for case in CASES:
        rates = {name: sustained(_deploy(name, case), prompt, output) for name in ("vllm-0.2", *BASELINES)}
        rows.append((case.label, *(f"{rate:.2f}" for rate in rates.values())))
        for name in BASELINES:
            ratios[name].append(rates["vllm-0.2"] / rates[name])
    rows += _rising(prompt, output)
    ours = {label: Range.of(*ratios[name]) for label, name in LABELS.items()}
    return Outcome(ours, tuple(rows), (), lengths)


def _rising(prompt: Ints, output: Ints) -> list[tuple[str, ...]]:
    """Normalised latency at rising rates, the curves of figure 12."""
    rows: list[tuple[str, ...]] = [("OPT-13B, s per token at", *(f"{rate} requests/s" for rate in RISING))]
    for name in ("vllm-0.2", *BASELINES):
        deployment = _deploy(name, CASES[0])
        latency = [normalized_latency(simulate(at_rate(prompt, output, r), deployment)) for r in RISING]
        rows.append((name, *(f"{value:.3f}" for value in latency)))
    return rows


def _deploy(system: str, case: Case) -> Resolved:
    if system == "fastertransformer":
        options = {"max_batch_size": 256}
        return Deployment.of(**case.deployment, system=system, options=options).resolve()
    return in_vllms_engine(system, **case.deployment)


def sustained(deployment: Resolved, prompt: Ints, output: Ints) -> float:
    """The largest Poisson rate, requests/s, whose mean normalised latency is bearable."""

    def bearable(rate: float) -> bool:
        return normalized_latency(simulate(at_rate(prompt, output, rate), deployment)) <= BEARABLE

    return bisect(bearable, 0.25, 2.0, steps=6)


def run_batches(workloads: Workloads) -> Outcome:
    """Requests in the batch at the same rate."""
    prompt, output, lengths = workloads.sharegpt(NUM_REQUESTS)
    trace = at_rate(prompt, output, 2.0)
    running = {
        name: mean_level(simulate(trace, _deploy(name, CASES[0])), "num_running")
        for name in ("vllm-0.2", "orca-oracle", "orca-pow2", "orca-max")
    }
    rows = (("requests in the batch", *running), ("mean", *(f"{n:.1f}" for n in running.values())))
    ours = {
        ORACLE: Range.of(running["vllm-0.2"] / running["orca-oracle"]),
        LONGEST: Range.of(running["vllm-0.2"] / running["orca-max"]),
    }
    return Outcome(ours, rows, (), lengths)


ORACLE, LONGEST, STATIC = "Orca (Oracle)", "Orca (Max)", "FasterTransformer"
LABELS = {ORACLE: "orca-oracle", LONGEST: "orca-max", STATIC: "fastertransformer"}
CLAIMS = (
    Claim(
        id="orca-rates",
        title="Request rate sustained over Orca and FasterTransformer, ShareGPT",
        source="arXiv 2309.06180, section 6.2",
        setup=f"OPT-13B, 66B and 175B on 1, 4 and 8 A100; {NUM_REQUESTS} Poisson arrivals of ShareGPT's lengths; a "
        f"rate is sustained up to {BEARABLE} s of latency per output token",
        unknown="the latency at which rates were compared, seeds; the paper's hour of arrivals is shorter here",
        why="between saturation of one system and the next the ratio grows with the latency called similar; "
        "FasterTransformer's ratio depends on how its batches were formed",
        published=(
            Published(ORACLE, 1.7, 2.7),
            Published(LONGEST, 2.7, 8.0),
            Published(STATIC, 22, 22, "×", "up to"),
        ),
        run=run_rates,
    ),
    Claim(
        id="orca-batch",
        title="Requests batched at once, 2 requests/s of ShareGPT",
        source="arXiv 2309.06180, figure 13a",
        setup="OPT-13B, A100-40GB",
        unknown="seeds",
        why="a saturated Orca's batch is as large as its memory, vLLM's as large as the rate and its step time make it",
        published=(Published(ORACLE, 2.2, 2.2), Published(LONGEST, 4.3, 4.3)),
        run=run_batches,
    ),
)
