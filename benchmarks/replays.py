"""The public traces replayed end to end, at their own rate and at 80 % of what the deployment can do.

    .venv/bin/python benchmarks/replays.py [--num-prompts N]

Needs ``../shared/data/traces``. 8B on one H100, 70B on four. Capacity is the throughput when all requests are there at
once. Every run checks that no request is lost.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from simulator import Deployment, read_trace, simulate

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
FILES = {
    "Azure conversations": "azure/AzureLLMInferenceTrace_conv.csv",
    "Azure code": "azure/AzureLLMInferenceTrace_code.csv",
    "Mooncake conversations": "mooncake/conversation_trace.jsonl",
}
DEPLOYMENTS = {
    "8B, 1 × H100": Deployment(model="llama-3.1-8b", gpu="h100"),
    "70B, 4 × H100": Deployment(model="llama-3.1-70b", gpu="h100", tensor_parallel_size=4),
}
COLUMNS = ["trace", "deployment", "rate", "load", "TTFT mean", "TTFT P99", "TPOT mean"]
COLUMNS += ["hits %", "preempted", "queue max", "req/CPU-s"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-prompts", type=int, help="only the first so many requests of each trace")
    options = parser.parse_args()
    if not TRACES.is_dir():
        raise SystemExit(f"{TRACES} is not there: the public traces are not part of this project")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, file in FILES.items():
        trace = read_trace(TRACES / file, limit=options.num_prompts)
        for what, deployment in DEPLOYMENTS.items():
            resolved = deployment.resolve()
            capacity = simulate(trace.with_request_rate(float("inf")), resolved).summary["request_throughput"]
            for rate in (trace.request_rate, 0.8 * float(capacity)):
                print_row(name, what, resolved, trace.with_request_rate(rate), float(capacity))


def print_row(name: str, what: str, resolved, trace, capacity: float) -> None:  # type: ignore[no-untyped-def]
    start = time.process_time()
    result = simulate(trace, resolved)
    seconds = time.process_time() - start
    s = result.summary
    overload = s.overload is not None and s.overload.overloaded
    cells = [
        name,
        what,
        f"{trace.request_rate:.2f}/s",
        f"{trace.request_rate / capacity:.0%}" + (" (overload)" if overload else ""),
        f"{s['mean_ttft_ms']:,.0f} ms",
        f"{s['p99_ttft_ms']:,.0f} ms",
        f"{s['mean_tpot_ms']:.1f} ms",
        f"{100 * s['prefix_cache_hit_rate']:.1f}",
        str(s["preemptions"]),
        f"{s['max_num_waiting']:,.0f}",
        f"{len(trace) / seconds:,.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
