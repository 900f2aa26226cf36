"""Draws from a large space: the same winner as by exhaustion, whatever the number of workers."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.sizing import Search, SearchSpace, SerialExecutor, parse_slo
from simulator.sizing.candidates import LARGE_SPACE, Candidate, Choice, Skipped, ToBeat
from simulator.sizing.capacity import Capacity
from simulator.sizing.evidence import evidence
from simulator.sizing.sampled import Outcome, Sampled, draw
from simulator.sizing.wording import paragraphs
from simulator.workload import Lengths, Trace, generate_trace

pytest.importorskip("optuna")

SLO = parse_slo(["ttft:p99:1500", "tpot:p99:80"])
MODEL = Deployment.of(model="llama-3.1-8b")
RATE = 30.0
LARGE = SearchSpace(
    MODEL,
    ("h100", "h200", "a100", "l40s", "l4", "mi300x"),
    ("vllm", "sglang", "tgi"),
    (1, 2, 4),
    (None, "fp8"),
    (None, 16, 32, 64, 128, 256, 512),
    (None, 512, 1024, 2048, 4096, 8192),
)
PRICES = {
    "h100-sxm-80gb": 3.9,
    "h200-sxm-141gb": 4.3,
    "a100-sxm-80gb": 1.95,
    "l40s-48gb": 1.0,
    "l4-24gb": 0.44,
}


def trace(n: int = 400) -> Trace:
    return generate_trace(
        n,
        request_rate=RATE,
        input_length=Lengths.parse("lognormal:mean=900,sigma=0.8,max=6000"),
        output_length=Lengths.parse("lognormal:mean=150,sigma=0.6,max=800"),
        seed=4,
    )


def capacity(choice: Choice) -> float:
    """A smooth stand-in for a simulation: dear GPUs are fast, 2 GPUs pay, and each limit has a best value."""
    d = choice.deployment
    speed = {"h100-sxm-80gb": 20, "h200-sxm-141gb": 30, "a100-sxm-80gb": 7, "l40s-48gb": 5, "l4-24gb": 1.2}
    found = speed.get(d.gpu, 14) * d.tensor_parallel_size ** (1.2 if d.tensor_parallel_size <= 2 else 0.9)
    found *= {"vllm": 1.0, "sglang": 1.1}.get(d.system, 0.7) * (1.4 if d.dtype == "fp8" else 1.0)
    seqs, tokens = math.log2(d.max_num_seqs or 1024), math.log2(d.max_num_batched_tokens or 8192)
    return found * math.exp(-0.05 * (seqs - 7) ** 2 - 0.03 * (tokens - 11) ** 2)


def evaluate(choice: Choice, best: ToBeat) -> Outcome:
    d = choice.deployment
    if d.gpu == "l4-24gb" and d.tensor_parallel_size == 1:
        return Outcome(Skipped(choice.name, "impossible", "does not fit"), None)
    rate, price = capacity(choice), PRICES.get(d.gpu, 3.45)
    candidate = Candidate(choice, price, choice.num_gpus, rate / 0.6)
    if rate < candidate.rate_to_beat(best, RATE):
        return Outcome(candidate, Skipped(choice.name, "simulation", "too slow"))
    return Outcome(candidate, Capacity(d, rate, candidate.bound, ()))


def cheapest(sampled: Sampled) -> ToBeat:
    return min(costs for costs, _ in sampled.best.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_find_what_looking_at_everything_finds(seed: int) -> None:
    sampled = Sampled(LARGE, RATE, evaluate, SerialExecutor())
    draw(sampled, 200, seed)
    best = min(evaluate(choice, ToBeat()).costs(RATE) for choice in LARGE.choices())
    assert len(sampled.seen) < len(LARGE) / 10
    assert cheapest(sampled) == best


def test_no_single_change_improves_what_it_ends_with() -> None:
    sampled = Sampled(LARGE, RATE, evaluate, SerialExecutor())
    draw(sampled, 80, 0)
    for costs, key in sampled.best.values():
        for point in sampled.neighbours(dict(zip(sampled.axes, key))):
            other = evaluate(sampled.choice(point), ToBeat()).costs(RATE)
            assert sampled.gpu(point) != sampled.gpu(dict(zip(sampled.axes, key))) or other >= costs


def test_draws_depend_on_the_seed_alone() -> None:
    found = []
    for seed, workers in ((7, 1), (7, 3), (8, 1)):
        with ThreadPoolExecutor(workers) as pool:
            sampled = Sampled(LARGE, RATE, evaluate, pool)
            draw(sampled, 100, seed)
            found.append(list(sampled.seen))
    assert found[0] == found[1] != found[2]


def test_by_simulation_the_winner_is_that_of_exhaustive_search() -> None:
    space = SearchSpace(MODEL, ("h100", "l40s"), ("vllm",), (1, 2), (None, "fp8"), (None,), (None,))
    search = Search(trace(150), SLO, space, requests=100, confirm_runs=2, method="optuna", trials=5)
    drawn, every = search.run(), replace(search, method="exhaustive").run()
    assert drawn.best.candidate == every.best.candidate
    assert drawn.best.replicas == every.best.replicas
    text = "\n".join(paragraphs(evidence(drawn)))
    assert f"Searched {drawn.looked_at} of 8 choices: drawn by Optuna (seed 0)" in text
    assert "Searched all 8 choices" in "\n".join(paragraphs(evidence(every)))


def test_a_large_space_is_drawn_from_unless_told_otherwise() -> None:
    huge = replace(LARGE, max_num_seqs=(None, *range(8, 200, 2)))
    assert len(huge) > LARGE_SPACE > len(LARGE)
    assert Search(trace(), SLO, huge).chosen_method == "optuna"
    assert Search(trace(), SLO, LARGE).chosen_method == "bound"
    assert Search(trace(), SLO, huge, method="bound").chosen_method == "bound"


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'exhaustive'"):
        Search(trace(), SLO, LARGE, method="exhaustiv")
    with pytest.raises(ConfigurationError, match="trials 0"):
        Search(trace(), SLO, LARGE, trials=0)
