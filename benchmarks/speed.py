"""How fast the simulator is: requests per second of CPU time on one core, and how that grows.

    .venv/bin/python benchmarks/speed.py [--quick] [--json FILE] [--profile]

Counted is everything but start-up and imports: reading the trace, resolving the deployment, simulating,
summarising. CPU seconds of this process (``time.process_time``), the best of several runs, because machines
are shared. Real traces are taken from ``../shared/data/traces`` where that is; otherwise lengths with the
same statistics are generated, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulator import Deployment, Trace, read_trace, simulate

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
AZURE = TRACES / "azure" / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = TRACES / "mooncake" / "conversation_trace.jsonl"


def cpu_seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Best CPU time of *repeats* runs, and the result of the last."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def chat(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths like Azure's conversations: pairs drawn from the trace, or lognormal with its mean and spread."""
    rng = np.random.default_rng(seed)
    if AZURE.exists():
        real = read_trace(AZURE)
        rows = rng.integers(0, len(real), n)
        return real.input_length[rows], real.output_length[rows]
    prompt = np.clip(rng.lognormal(6.63, 0.99, n), 2, 14_000).astype(np.int64)
    output = np.clip(rng.lognormal(5.02, 0.86, n), 1, 1000).astype(np.int64)
    return prompt, output


def poisson(rate: float, lengths: tuple[np.ndarray, np.ndarray], seed: int = 1) -> Trace:
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(lengths[0]))
    return Trace.from_columns(np.cumsum(gaps), *lengths)


def capacity(deployment: Deployment, n: int = 3000) -> float:
    """Requests per second that the deployment finishes when it never runs dry."""
    summary = simulate(poisson(1e6, chat(n)), deployment).summary
    return float(summary["request_throughput"])


def row(name: str, requests: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "what": name,
        "requests": requests,
        "cpu_s": round(seconds, 3),
        "req_per_cpu_s": round(requests / seconds),
        **more,
    }


def azure_at_80_percent(repeats: int) -> dict[str, Any]:
    deployment = Deployment(model="llama-3.1-8b", gpu="h100")
    rate = 0.8 * capacity(deployment)
    if AZURE.exists():
        seconds, result = cpu_seconds(
            lambda: simulate(read_trace(AZURE, request_rate=rate), deployment), repeats
        )
    else:
        trace = poisson(rate, chat(19_366))
        seconds, result = cpu_seconds(lambda: simulate(trace, deployment), repeats)
    return row(
        f"Azure conversations, 80 % load ({rate:.1f}/s), 8B on H100", len(result.trace), seconds,
        preemptions=result.summary["preemptions"], target=40_000,
    )  # fmt: skip


def mooncake_scarce(repeats: int) -> dict[str, Any] | None:
    if not MOONCAKE.exists():
        return None
    deployment = Deployment(model="llama-3.1-8b", gpu="h100")
    seconds, result = cpu_seconds(lambda: simulate(read_trace(MOONCAKE), deployment), repeats)
    return row(
        "Mooncake conversations, prefix sharing, overload", len(result.trace), seconds,
        preemptions=result.summary["preemptions"], cached_tokens=result.summary["cached_tokens"], target=20_000,
    )  # fmt: skip


def a_million(n: int) -> dict[str, Any]:
    deployment = Deployment(model="llama-3.1-8b", gpu="h100")
    rate = 0.8 * capacity(deployment)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        poisson(rate, chat(n)).to_jsonl(path)
        seconds, _ = cpu_seconds(lambda: simulate(read_trace(path), deployment), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row(f"{n:,} requests from a file", n, seconds, peak_gib=round(peak, 2), target_s=30, target_gib=2)


def growth(sizes: list[int]) -> list[dict[str, Any]]:
    """Time per request as the trace grows."""
    deployment = Deployment(model="llama-3.1-8b", gpu="h100").resolve()
    rate, rows = 0.8 * capacity(deployment.deployment), []
    for n in sizes:
        trace = poisson(rate, chat(n))
        seconds, _ = cpu_seconds(lambda trace=trace: simulate(trace, deployment), 3 if n <= 20_000 else 1)
        rows.append(row(f"{n:,} requests", n, seconds))
    return rows


def shape(n: int, repeats: int) -> list[dict[str, Any]]:
    """Time per request as outputs and batches grow, at one request rate: 80 % of what the smaller of both can do."""
    rows = []
    for pair in (
        (("output 100", 100, 256), ("output 1000", 1000, 256)),
        (("max_num_seqs 32", 200, 32), ("max_num_seqs 1024", 200, 1024)),
    ):
        built = [(name, np.full(n, 200), np.full(n, out), seqs) for name, out, seqs in pair]
        rates = [
            simulate(poisson(1e6, (a, b)), Deployment(max_num_seqs=seqs)).summary["request_throughput"]
            for _, a, b, seqs in built
        ]
        rate = 0.8 * float(min(rates))
        for name, prompts, outputs, seqs in built:
            trace, resolved = poisson(rate, (prompts, outputs)), Deployment(max_num_seqs=seqs).resolve()
            seconds, _ = cpu_seconds(
                lambda trace=trace, resolved=resolved: simulate(trace, resolved), repeats
            )
            rows.append(row(f"{name}, {rate:.1f}/s", n, seconds))
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        more = ", ".join(
            f"{k} {v}" for k, v in r.items() if k not in ("what", "requests", "cpu_s", "req_per_cpu_s")
        )
        print(f"{r['what']:55} {r['requests']:>9,} {r['cpu_s']:>9.3f} s {r['req_per_cpu_s']:>8,} /s  {more}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes: a minute instead of several")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--profile", action="store_true", help="profile the first benchmark")
    options = parser.parse_args()
    repeats = 2 if options.quick else 5
    if options.profile:
        import cProfile

        cProfile.run("azure_at_80_percent(1)", sort="tottime")
        return
    rows = [azure_at_80_percent(repeats)]
    if (mooncake := mooncake_scarce(1 if options.quick else 3)) is not None:
        rows.append(mooncake)
    rows += growth([1000, 10_000] if options.quick else [1000, 10_000, 100_000, 1_000_000])
    rows += shape(2000 if options.quick else 8000, repeats)
    rows.append(a_million(100_000 if options.quick else 1_000_000))
    print_rows(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
