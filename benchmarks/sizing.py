"""Sizing on Azure's conversations: how long a plan takes, whether exhaustion finds the same, and a day over time.

    .venv/bin/python benchmarks/sizing.py [plan] [exhaustive] [capacity] [day] [--workers 2]

plan        50 requests/s of Llama 3.1 70B, P99 TTFT 2,000 ms and P99 TPOT 200 ms, five GPU types
exhaustive  the same on a reduced space, pruned and by exhaustion: the same winner
capacity    the capacity of a replica by bisection, against a grid of 1 %
day         500,000 requests with Azure's lengths over 24 h, every 15 minutes; hourly steps of the rate
            5.79 (1 + 0.6 cos(2π (t − 15 h) / 24 h)) per s, lowest at 3 h and highest at 15 h, 4 to 1

The trace is ``../shared/data/traces`` (see that folder for its source). Times are of this machine, wall and CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulator import Deployment, Trace, read_trace
from simulator.sizing import Prices, Search, SearchSpace, find_capacity, local_executor, parse_slo, probe
from simulator.sizing.evidence import evidence
from simulator.sizing.over_time import size_over_time
from simulator.sizing.report import over_time_rows
from simulator.sizing.wording import headline, paragraphs
from simulator.workload import generate_trace, piecewise_arrivals

AZURE = Path(__file__).parents[2] / "shared/data/traces/azure/AzureLLMInferenceTrace_conv.csv"
MODEL = Deployment.of(model="llama-3.1-70b")
SLO = parse_slo(["ttft:p99:2000", "tpot:p99:200"])
DAY_REQUESTS, DAY_S = 500_000, 86_400


def azure(rate: float = 50.0) -> Trace:
    """The trace, stretched to *rate* requests/s."""
    return read_trace(AZURE, spread="uniform", request_rate=rate, seed=0)


def plan(workers: int) -> None:
    with local_executor(workers) as pool:
        found = evidence(Search(azure(), SLO, SearchSpace(MODEL)).run(pool, progress=print), pool)
    print(headline(found), *paragraphs(found), sep="\n")


def exhaustive(workers: int) -> None:
    space = SearchSpace(MODEL, ("h100", "h200", "mi300x"), max_num_seqs=(None,))
    with local_executor(workers) as pool:
        results = [Search(azure(), SLO, space, method=how).run(pool) for how in ("bound", "exhaustive")]
    for name, result in zip(("pruned", "exhaustive"), results):
        best = result.best
        cost, plans = f"${best.usd_per_hour:.2f}/h", len(result.ranking)
        print(f"{name}: {best.replicas} x ({best.candidate.name}) for {cost}, {plans} plans")
    assert results[0].best.candidate == results[1].best.candidate


def capacity(workers: int) -> None:
    trace, deployment = azure(), MODEL.model_copy(update={"gpu": "h100", "tensor_parallel_size": 4})
    found = find_capacity(trace, deployment, SLO, replicas=9)
    part = trace.select(np.arange(len(trace)) % 9 == 0)
    rates = found.request_rate * np.arange(0.9, 1.1, 0.01)
    held = max(rate for rate in rates if probe(part.with_request_rate(rate), deployment, SLO).met)
    print(
        f"bisection {found.request_rate:.3f}, grid {held:.3f} requests/s ({found.request_rate / held - 1:+.1%})"
    )


def day(workers: int) -> None:
    mean = DAY_REQUESTS / DAY_S
    rates = [mean * (1 + 0.6 * math.cos(2 * math.pi * (hour + 0.5 - 15) / 24)) for hour in range(24)]
    trace = generate_trace(
        DAY_REQUESTS,
        arrivals=lambda n, g: piecewise_arrivals(n, rates, [3600.0] * 24, g),
        lengths_from=azure(),
        seed=0,
    )
    space = SearchSpace(MODEL, ("h100", "h200", "mi300x"), max_num_seqs=(None,))
    with local_executor(workers) as pool:
        found = size_over_time(trace, SLO, space, Prices.load(), executor=pool).as_dict()
    print(found["headline"], found["subtitle"], sep="\n")
    for row in over_time_rows(found["over_time"]):
        print(*row, sep="; ")


PARTS: dict[str, Callable[[int], None]] = {
    "plan": plan,
    "exhaustive": exhaustive,
    "capacity": capacity,
    "day": day,
}


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    times: Any = os.times()
    return float(times.user + times.system + times.children_user + times.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        wall, cpu = time.perf_counter(), cpu_seconds()
        PARTS[name](arguments.workers)
        print(
            f"{name}: {time.perf_counter() - wall:.0f} s, {cpu_seconds() - cpu:.0f} s of CPU time\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
