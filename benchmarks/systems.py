"""Every serving system on one trace, at three loads: latency, throughput, waste, and what simulating it costs.

    .venv/bin/python benchmarks/systems.py [--quick] [--systems a,b] [--json FILE] [--html FILE]

The trace is Azure's conversations of 2023 (``../shared/data/traces``; lengths of the same statistics where that
is missing), Llama 3.1 8B on one H100, at 30, 60 and 90 % of the rate that `vllm` finishes when it never runs
dry. Every system has its own defaults but for `SETTINGS`; contexts are cut to 16,384 tokens, which holds the
whole trace. Latencies are in milliseconds; a system that hands out whole answers has its TTFT at their end and
no TPOT. Waste is in per cent of the KV space: reserved for later tokens, internal (ends of blocks, padding,
ended rows), external (free but unusable). The last column counts simulated requests per second of CPU time; the
last line compares the slowest with `vllm`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from speed import AZURE, capacity, chat, poisson

from simulator import Deployment, Trace, read_trace, simulate
from simulator.errors import SimError
from simulator.scheduling.system import find_system, list_systems

LOADS = (0.3, 0.6, 0.9)
CONTEXT = 16_384
SETTINGS: dict[str, dict[str, Any]] = {
    "airllm": {"max_model_len": CONTEXT},
    "mlc-llm": {"max_single_sequence_length": CONTEXT},
    "rtp-llm": {"max_generate_batch_size": 128, "max_seq_len": CONTEXT},
    "triton": {
        "max_batch_size": 32,
        "preferred_batch_size": (8, 16, 32),
        "max_queue_delay_microseconds": 100_000,
    },
    "fastertransformer": {"max_batch_size": 32},
    "hf-static": {"max_batch_size": 32},
    "llama.cpp": {"n_parallel": 16, "n_ctx": 16 * CONTEXT},
    "llama-cpp-python": {"n_ctx": CONTEXT},
    "ollama": {"num_parallel": 16, "num_ctx": CONTEXT},
    "powerinfer": {"n_parallel": 16, "n_ctx": 16 * CONTEXT},
}
"""Where a system's own default would say nothing about it: one request at a time, contexts shorter than the trace's."""
COLUMNS = (
    ("system", "<28"), ("load", ">4.0%"), ("ttft_p50", ">10,.0f"), ("ttft_p99", ">10,.0f"), ("tpot", ">8,.1f"),
    ("e2el_p50", ">11,.0f"), ("tokens_s", ">8,.0f"), ("reserved", ">8.1%"), ("internal", ">8.1%"),
    ("external", ">8.1%"), ("preempted", ">9,d"), ("refused", ">7,d"), ("failed", ">6,d"), ("req_cpu_s", ">9,.0f"),
)  # fmt: skip


def deployment(name: str) -> Deployment:
    options = dict(SETTINGS.get(name, {}))
    known = find_system(name).options
    length = options.pop("max_model_len", CONTEXT if "max_model_len" in known else None)
    return Deployment.of(model="llama-3.1-8b", gpu="h100", system=name, max_model_len=length, options=options)


def trace_at(rate: float, quick: bool) -> Trace:
    if AZURE.exists() and not quick:
        return read_trace(AZURE, request_rate=rate)
    return poisson(rate, chat(1000 if quick else 19_366))


def measure(name: str, load: float, trace: Trace, repeats: int) -> dict[str, Any]:
    """One row: the best CPU time of *repeats* runs. Raises if a request is neither finished nor accounted for."""
    resolved, best = deployment(name).resolve(), float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = simulate(trace, resolved)
        best = min(best, time.process_time() - start)
    s = result.summary
    if s["completed"] + s["rejected"] + s["failed"] != len(trace):
        raise SimError(
            f"{name} at {load:.0%}: {len(trace)} requests came, {s['completed']} finished, others vanished"
        )
    return {
        "system": name,
        "load": load,
        "ttft_p50": s["median_ttft_ms"],
        "ttft_p99": s["p99_ttft_ms"],
        "tpot": s["mean_tpot_ms"] or None,
        "e2el_p50": s["median_e2el_ms"],
        "tokens_s": s["output_throughput"],
        "reserved": s["fragmentation_reserved"],
        "internal": s["fragmentation_internal"],
        "external": s["fragmentation_external"],
        "preempted": s["preemptions"],
        "refused": s["rejected"],
        "failed": s["failed"],
        "req_cpu_s": len(trace) / best,
    }


def text(row: dict[str, Any]) -> str:
    cells = []
    for name, form in COLUMNS:
        value = row[name]
        cells.append(f"{'-':>{width(form)}}" if value is None else f"{value:{form}}")
    return " ".join(cells)


def width(form: str) -> str:
    """Columns of a format: 10 of ``>10,.0f``."""
    return form.lstrip("<>").split(".")[0].rstrip(",d")


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels: time to first token, time per output token with the whole request, throughput, KV waste."""
    from plotly.subplots import make_subplots

    panels = (
        ("ttft_p50", "Median TTFT, ms"),
        ("e2el_p50", "Median time of a request, ms"),
        ("tokens_s", "Output tokens/s"),
    )
    titles = [*(title for _, title in panels), "KV space wasted at the highest load"]
    figure = make_subplots(4, 1, subplot_titles=titles, vertical_spacing=0.1)
    loads = sorted({row["load"] for row in rows})
    for place, (name, _) in enumerate(panels, 1):
        for shade, load in zip(("#9ecae1", "#4292c6", "#084594"), loads):
            here = [row for row in rows if row["load"] == load]
            figure.add_bar(
                x=[row["system"] for row in here], y=[row[name] for row in here], name=f"{load:.0%} load",
                marker_color=shade, legendgroup=f"{load}", showlegend=place == 1, row=place, col=1,
            )  # fmt: skip
        if place < 3:
            figure.update_yaxes(type="log", row=place, col=1)
    here = [row for row in rows if row["load"] == loads[-1]]
    below = [0.0] * len(here)
    for kind, shade in (("reserved", "#fdae6b"), ("internal", "#e6550d"), ("external", "#a63603")):
        heights = [row[kind] or 0.0 for row in here]
        figure.add_bar(
            x=[row["system"] for row in here], y=heights, base=below, name=kind, marker_color=shade,
            offsetgroup="waste", row=4, col=1,
        )  # fmt: skip
        below = [low + height for low, height in zip(below, heights, strict=True)]
    figure.update_yaxes(tickformat=".0%", row=4, col=1)
    figure.update_xaxes(tickangle=45)
    title = "Serving systems: Azure conversations, Llama 3.1 8B on one H100"
    figure.update_layout(height=1900, template="plotly_white", title=title)
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1000 requests at one load: a minute")
    parser.add_argument("--systems", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--html", type=Path, help="write a picture there")
    options = parser.parse_args()
    names = (
        options.systems.split(",")
        if options.systems
        else [s.name for s in list_systems() if s.same_as is None]
    )
    names = sorted(names, key=lambda name: (name != "vllm", name))
    peak, rows = capacity(deployment("vllm")), []
    where = "drawn from Azure's lengths" if options.quick or not AZURE.exists() else "Azure conversations"
    print(f"vllm finishes {peak:.1f} requests/s; {where}")
    print(" ".join(f"{name:{form[0]}{width(form)}}" for name, form in COLUMNS))
    for load in (0.6,) if options.quick else LOADS:
        trace = trace_at(load * peak, options.quick)
        for name in names:
            rows.append(measure(name, load, trace, 2 if options.quick else 1))
            print(text(rows[-1]), flush=True)
        slowest = min((row for row in rows if row["load"] == load), key=lambda row: row["req_cpu_s"])
        vllm = next((row for row in rows if row["load"] == load and row["system"] == "vllm"), None)
        if vllm is not None:
            share = slowest["req_cpu_s"] / vllm["req_cpu_s"]
            print(f"slowest to simulate at {load:.0%}: {slowest['system']}, {share:.2f} of vllm's speed\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.html:
        picture(rows, options.html)


if __name__ == "__main__":
    main()
