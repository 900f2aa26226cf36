"""Chunked prefill and SplitFuse against prompts that go first.

A prompt that runs alone stalls every decoding sequence for as long as it takes. Sarathi-Serve (Agrawal et al., OSDI
2024) and DeepSpeed-FastGen (Holmes et al., arXiv 2401.08671) cut prompts into pieces that ride with the decodes.

Sarathi-Serve's capacity is the largest rate at which the 99th percentile of the time between tokens meets its limit and
the median request waits at most 2 s (osdi-experiments/figure-5-6 of its repository; 512 tokens an iteration under the
strict limit, 2048 under the relaxed one). FastGen's effective throughput counts requests whose prompt ran at 512
tokens/s or more and whose tokens came at 4 per s or more (blogs/deepspeed-fastgen, 38327e07); its clients are closed
loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import Ints, Workloads, quantile_lengths
from simulator.claims.runs import Case, at_rate, bisect
from simulator.deployment import Deployment, Resolved
from simulator.simulation import Result, simulate
from simulator.workload import Lengths, generate_trace

__all__ = ["CLAIMS"]

PROMPTS = ((0.0, 4), (0.5, 1730), (0.9, 5696), (0.99, 7434), (1.0, 8141))
OUTPUTS = ((0.0, 4), (0.5, 415), (0.9, 834), (0.99, 998), (1.0, 1024))
"""Quantiles of Sarathi-Serve's file of ShareGPT lengths (sharegpt_8k_filtered_stats_llama2_tokenizer.csv, 72339db5)."""
NUM_REQUESTS = 400


@dataclass(frozen=True)
class Limit:
    """What Sarathi-Serve calls strict and relaxed: *tbt*, s at the 99th percentile, and the tokens of an iteration."""

    name: str
    tbt: float
    chunk_size: int


CASES = {
    Case("Mistral-7B, 1 A100", "mistral-7b", "a100-sxm-80gb"): (
        Limit("strict", 0.1, 512),
        Limit("relaxed", 0.5, 2048),
    ),
    Case("Yi-34B, 2 A100", "yi-34b-200k", "a100-sxm-80gb", 2): (
        Limit("strict", 0.2, 512),
        Limit("relaxed", 1.0, 2048),
    ),
}


def run_capacity(workloads: Workloads) -> Outcome:
    """Capacity of Sarathi-Serve over vLLM's, both limits, both models."""
    streams = np.random.default_rng(0).spawn(2)
    prompt = quantile_lengths(PROMPTS, NUM_REQUESTS, streams[0])
    output = quantile_lengths(OUTPUTS, NUM_REQUESTS, streams[1])
    rows: list[tuple[str, ...]] = [("requests/s within the limits", "vLLM", "Sarathi-Serve")]
    ours = {}
    for case, limits in CASES.items():
        ratios = []
        for limit in limits:
            first = _capacity(_prefill_first(case), limit, prompt, output)
            chunked = _capacity(_chunked(case, limit), limit, prompt, output)
            ratios.append(chunked / first)
            rows.append((f"{case.label}, {limit.name}: {limit.tbt} s", f"{first:.2f}", f"{chunked:.2f}"))
        ours[case.label] = Range.of(*ratios)
    return Outcome(
        ours, tuple(rows), (), "quantiles of Sarathi-Serve's ShareGPT lengths (median 1730 in, 415 out)"
    )


def _prefill_first(case: Case) -> Resolved:
    return Deployment.of(**case.deployment, system="vllm-0.2", max_model_len=9216, max_num_seqs=128).resolve()


def _chunked(case: Case, limit: Limit) -> Resolved:
    return Deployment.of(
        **case.deployment,
        system="sarathi",
        max_model_len=9216,
        max_num_seqs=128,
        options={"chunk_size": limit.chunk_size},
    ).resolve()


def _capacity(deployment: Resolved, limit: Limit, prompt: Ints, output: Ints) -> float:
    def bearable(rate: float) -> bool:
        result = simulate(at_rate(prompt, output, rate), deployment, percentiles=(50, 99))
        records = result.records
        delay = float(np.nanmedian(records.first_scheduled_time - records.arrival_time))
        return _ms(result, "p99_itl_ms") <= 1e3 * limit.tbt and delay <= 2.0

    return bisect(bearable, 0.25, 2.0, steps=5)


def _ms(result: Result, name: str) -> float:
    return float(result.summary[name] or 0.0)


CLIENTS = (1, 2, 4, 8, 16, 32)
EFFECTIVE_RATES = (1.42, 0.63)
"""requests/s that the post prints for FastGen and vLLM."""
SEVENTY = Case("Llama-2-70B, 4 A100", "llama-2-70b", "a100-sxm-80gb", 4)


def run_splitfuse(workloads: Workloads) -> Outcome:
    """FastGen against vLLM over the number of clients: tail of the time between tokens, effective throughput."""
    rows: list[tuple[str, ...]] = [("clients", *(str(n) for n in CLIENTS))]
    tails, rates = {}, {}
    for system in ("vllm-0.2", "deepspeed-fastgen"):
        deployment = Deployment.of(**SEVENTY.deployment, system=system).resolve()
        results = [_clients(deployment, n) for n in CLIENTS]
        tails[system] = [_ms(result, "p95_itl_ms") for result in results]
        rates[system] = [_effective(result) for result in results]
        rows.append((f"{system}, P95 token latency, ms", *(f"{ms:.0f}" for ms in tails[system])))
        rows.append((f"{system}, effective requests/s", *(f"{rate:.2f}" for rate in rates[system])))
    first, split = "vllm-0.2", "deepspeed-fastgen"
    ours = {
        TAIL: Range.of(max(a / b for a, b in zip(tails[first], tails[split], strict=True))),
        EFFECTIVE: Range.of(max(rates[split]) / max(rates[first])),
    }
    remark = (
        f"effective requests/s at the best number of clients: FastGen {max(rates[split]):.2f}, published "
        f"{EFFECTIVE_RATES[0]}; vLLM {max(rates[first]):.2f}, published {EFFECTIVE_RATES[1]} (28 % of requests failed)"
    )
    return Outcome(ours, tuple(rows), (remark,), "normal, mean 2600 in and 60 out, deviation 30 %")


def _clients(deployment: Resolved, clients: int) -> Result:
    trace = generate_trace(
        512,
        input_length=Lengths("normal", {"mean": 2600, "std": 780, "max": 4000}),
        output_length=Lengths("normal", {"mean": 60, "std": 18}),
        max_concurrency=clients,
    )
    return simulate(trace, deployment, percentiles=(95,))


def _effective(result: Result) -> float:
    """requests/s whose prompt ran at 512 tokens/s and whose tokens came at 4 per s."""
    records = result.records
    first = records.first_token_time - records.arrival_time
    each = (records.finish_time - records.first_token_time) / np.maximum(records.output_length - 1, 1)
    kept = (first <= records.input_length / 512) & (each <= 1 / 4)
    return float(kept.sum() / np.nanmax(records.finish_time))


TAIL, EFFECTIVE = "P95 token latency", "effective throughput"
CLAIMS = (
    Claim(
        id="chunked-prefill",
        title="Serving capacity of chunked prefill over prompts first, under a limit on the time between tokens",
        source="Sarathi-Serve, OSDI 2024, abstract",
        setup="Poisson arrivals, P99 time between tokens within the strict or the relaxed limit, median wait of 2 s",
        unknown="which limit and data set the largest gain belongs to; values behind its figures 5 and 6",
        why="under a strict limit vLLM's capacity is that of hardly any overlap between a prompt and a decode, a small "
        "number that the few longest prompts decide",
        published=(
            Published("Mistral-7B, 1 A100", 2.6, 2.6, "×", "up to"),
            Published("Yi-34B, 2 A100", 3.7, 3.7, "×", "up to"),
        ),
        run=run_capacity,
    ),
    Claim(
        id="splitfuse",
        title="SplitFuse over prompts first",
        source="DeepSpeed-FastGen, arXiv 2401.08671, abstract",
        setup="Llama-2-70B on 4 A100-80GB, 1 to 32 clients, 512 requests, prompts of 2600 and outputs of 60 tokens",
        unknown="which lengths and GPUs the largest gains belong to; the moving average of its token rate (mean here)",
        why="a mean per request forgives a stall that a moving average does not, so that vLLM keeps requests here that "
        "it lost there; the tail is as many prompts as arrive together on one side, 768 tokens on the other",
        published=(Published(TAIL, 3.7, 3.7, "×", "up to"), Published(EFFECTIVE, 2.3, 2.3, "×", "up to")),
        run=run_splitfuse,
    ),
)
