"""Every technique on and off, on two real traces: latency, throughput and room for KV.

    .venv/bin/python benchmarks/techniques.py [--quick] [--json FILE] [--markdown FILE] [--svg FILE] [--workers 2]

Azure's conversations of 2023 and Mooncake's (``../shared/data/traces``; requests of the same statistics where that is
missing); Llama 3.1 8B on one GPU and 70B on four, H100 and A100. A technique is switched by itself against a baseline:
vLLM as it comes, or what `TECHNIQUES` says. Latencies are means at 60 % of the rate that vLLM finishes when it never
runs dry (both sides at the same rate: a side that cannot keep up shows it as TTFT); tokens/s are output tokens of a run
that never runs dry; KV tokens are what fits the cache of a replica. A side that the system refuses says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator import Deployment, Trace, read_trace, simulate
from simulator.claims import Workloads
from simulator.claims.runs import in_vllms_engine
from simulator.deployment import Resolved
from simulator.errors import SimError
from simulator.sizing.pool import local_executor

TRACES = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
AZURE = TRACES / "azure" / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = TRACES / "mooncake" / "conversation_trace.jsonl"
LOAD = 0.6
TOGETHER = 1e-6
"""Time scale by which everything arrives together, in its order."""
REQUESTS = {"azure": 1500, "mooncake": 500}
TITLES = {"azure": "Azure conversations", "mooncake": "Mooncake conversations"}
CONTEXT = 131_072


@dataclass(frozen=True)
class Technique:
    """*on* and *off* are what each side states beyond the set-up."""

    name: str
    on: dict[str, Any] = field(default_factory=dict)
    off: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    """Of the requests: what takes long to simulate gets few."""


EAGLE = {"method": "eagle", "tokens": 3, "acceptance": [0.7, 0.5, 0.35]}
TECHNIQUES = (
    Technique("FlashAttention", off={"flash_attention": False}),
    Technique("kernel fusion", off={"kernel_fusion": False}),
    Technique("CUDA graphs", off={"enforce_eager": True}),
    Technique("asynchronous scheduling", off={"async_scheduling": False}),
    Technique("GQA against MHA", off={"attention": "mha"}),
    Technique("chunked prefill", off={"enable_chunked_prefill": False, "max_num_batched_tokens": CONTEXT}),
    Technique("prefix caching", off={"enable_prefix_caching": False}),
    Technique("host tier for KV, 256 GiB", on={"kv_offloading_size": 256}),
    Technique("paged KV (vLLM 0.2, Orca pow2)", on={"engine": "vllm-0.2"}, off={"engine": "orca-pow2"}),
    Technique(
        "continuous batching (Orca, FasterTransformer)",
        on={"system": "orca-oracle"},
        off={"system": "fastertransformer", "options": {"max_batch_size": 32}},
    ),
    Technique(
        "KV cache (batches of 8)",
        on={"system": "hf-static"},
        off={"system": "hf-static", "kv_cache": False},
        share=0.05,
    ),
    Technique("FP8 weights and activations", on={"dtype": "fp8"}),
    Technique("INT8 weights and activations", on={"dtype": "int8"}),
    Technique("INT4 weights", on={"dtype": "int4"}),
    Technique("FP8 KV", on={"kv_cache_dtype": "fp8"}),
    Technique("EAGLE, 3 tokens, 0.7/0.5/0.35 accepted", on={"speculation": EAGLE}),
    Technique("twice the GPUs, tensor parallel", on={"tensor_parallel_size": 2}),
)
CASES = {
    "8B, 1 H100": {"model": "llama-3.1-8b", "gpu": "h100"},
    "8B, 1 A100": {"model": "llama-3.1-8b", "gpu": "a100"},
    "70B, 4 H100": {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel_size": 4},
    "70B, 4 A100": {"model": "llama-3.1-70b", "gpu": "a100", "tensor_parallel_size": 4},
}
COLOURS = {
    "8B, 1 H100": "#1f77b4",
    "8B, 1 A100": "#ff7f0e",
    "70B, 4 H100": "#2ca02c",
    "70B, 4 A100": "#d62728",
}
INTRODUCTION = """# Techniques on and off

Written by `benchmarks/techniques.py`, not by hand. One technique at a time is switched against vLLM as it comes, or
against what its name says; every cell is off → on, or one figure where both are equal. TTFT and TPOT are means at
{load} of the rate that vLLM finishes when it never runs dry, the same for both sides: where a side cannot keep up with
it, its TTFT is that of a queue. A static batch hands its answers out whole, so it has no TPOT. Tokens/s are output
tokens of a run that never runs dry, of {azure} requests of Azure's and {mooncake} of Mooncake's trace (a twentieth of
them where there is no KV cache). KV tokens fit the cache of one replica. Against KV without paging both sides have
vLLM 0.2's host costs and KV memory.

![Output tokens/s, on over off](../images/techniques.svg)
"""
COLUMNS = (
    ("ttft", "TTFT, ms", ",.0f"),
    ("tpot", "TPOT, ms", ".1f"),
    ("tokens_s", "tokens/s", ",.0f"),
    ("kv_tokens", "KV tokens", ",d"),
)


def trace_of(name: str, share: float) -> Trace:
    """The first requests of a trace, *share* of `REQUESTS`."""
    n = round(REQUESTS[name] * share)
    if name == "azure" and AZURE.exists():
        return read_trace(AZURE, limit=n)
    if name == "mooncake" and MOONCAKE.exists():
        return read_trace(MOONCAKE, limit=n, spread="uniform")  # its clock ticks every 3 s
    if name == "mooncake":
        return Workloads().mooncake(n)[0]
    draw = np.random.default_rng(0)
    prompt = np.clip(draw.lognormal(6.63, 0.99, n), 2, 14_000).astype(np.int64)
    output = np.clip(draw.lognormal(5.02, 0.86, n), 1, 1000).astype(np.int64)
    return Trace.from_columns(np.cumsum(draw.exponential(0.2, n)), prompt, output)


def deployment(case: str, side: dict[str, Any]) -> Resolved:
    """A side of a technique on a case; its GPUs multiply those of the case, its *engine* is a policy in vLLM 0.2."""
    if "engine" in side:
        return in_vllms_engine(side["engine"], **CASES[case])
    stated = CASES[case] | side
    if "tensor_parallel_size" in side:
        stated["tensor_parallel_size"] = side["tensor_parallel_size"] * CASES[case].get(
            "tensor_parallel_size", 1
        )
    return Deployment.of(**stated).resolve()


def measure(case: str, trace_name: str, side: dict[str, Any], rate: float, share: float) -> dict[str, Any]:
    """TTFT and TPOT at *rate*, throughput of a run that never runs dry, room for KV; or why it is refused."""
    trace = trace_of(trace_name, share)
    try:
        resolved = deployment(case, side)
        loaded = simulate(trace.with_request_rate(rate), resolved).summary
        dry = simulate(trace.scaled(TOGETHER), resolved).summary
    except SimError as error:
        return {"refused": str(error)}
    return {
        "ttft": loaded["mean_ttft_ms"],
        "tpot": loaded["mean_tpot_ms"] or None,
        "tokens_s": dry["output_throughput"],
        "kv_tokens": resolved.num_gpu_blocks * resolved.budget.block_size,
        "rejected": int((loaded["rejected"] or 0) + (loaded["failed"] or 0)),
    }


def finished_rate(case: str, trace_name: str, share: float) -> float:
    """requests/s that vLLM as it comes finishes when it never runs dry."""
    together = trace_of(trace_name, share).scaled(TOGETHER)
    return float(simulate(together, deployment(case, {})).summary["request_throughput"] or 0.0)


def measure_case(job: tuple[str, str, float]) -> list[dict[str, Any]]:
    """All techniques of one case on one trace."""
    case, trace_name, share = job
    rate = LOAD * finished_rate(case, trace_name, share)
    known: dict[str, dict[str, Any]] = {}
    rows = []
    for technique in TECHNIQUES:
        sides = {}
        for word, side in (("off", technique.off), ("on", technique.on)):
            key = json.dumps([side, technique.share], sort_keys=True)
            if key not in known:
                known[key] = measure(case, trace_name, side, rate, share * technique.share)
            sides[word] = known[key]
        rows.append({"case": case, "trace": trace_name, "rate": rate, "technique": technique.name, **sides})
    return rows


def cell(row: dict[str, Any], name: str, form: str) -> str:
    """``off → on`` of one figure; a dash where a side has none."""
    values = []
    for word in ("off", "on"):
        value = row[word].get(name)
        values.append("-" if value is None else f"{value:{form}}")
    return values[0] if values[0] == values[1] else " → ".join(values)


def note(row: dict[str, Any]) -> str:
    """What a reader must know of the row: a side that is refused, requests that did not fit."""
    said = []
    for word in ("off", "on"):
        if "refused" in row[word]:
            said.append(f"{word}: {row[word]['refused']}")
        elif row[word]["rejected"]:
            said.append(f"{word}: {row[word]['rejected']} requests never fit")
    return "; ".join(said)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """One table for each case and trace."""
    lines = [INTRODUCTION.format(load=f"{LOAD:.0%}".replace("%", " %"), **REQUESTS)]
    for trace_name in REQUESTS:
        for case in CASES:
            chosen = [row for row in rows if (row["case"], row["trace"]) == (case, trace_name)]
            if not chosen:
                continue
            lines += [f"## {case}, {TITLES[trace_name]}, {chosen[0]['rate']:.2f} requests/s", ""]
            lines.append("| technique, off → on | " + " | ".join(title for _, title, _ in COLUMNS) + " | |")
            lines.append("|---|" + "---|" * (len(COLUMNS) + 1))
            for row in chosen:
                cells = [cell(row, name, form) for name, _, form in COLUMNS]
                lines.append(f"| {row['technique']} | " + " | ".join(cells) + f" | {note(row)} |")
            lines.append("")
    return "\n".join(lines)


def gains(rows: list[dict[str, Any]]) -> Iterable[tuple[str, str, str, float]]:
    """(technique, case, trace, tokens/s on over off) of every row whose sides served the same requests."""
    for row in rows:
        on, off = row["on"], row["off"]
        if on.get("tokens_s") and off.get("tokens_s") and on["rejected"] == off["rejected"]:
            yield row["technique"], row["case"], row["trace"], on["tokens_s"] / off["tokens_s"]


def as_svg(rows: list[dict[str, Any]]) -> str:
    """A row for each technique, a dot for each case: how throughput changes when it is switched on."""
    height, left, right, low, high = 26, 300, 620, 0.4, 10.0

    def across(gain: float) -> float:
        share = math.log(min(max(gain, low), high) / low) / math.log(high / low)
        return left + share * (right - left)

    bottom = 60 + height * len(TECHNIQUES)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {bottom + 62}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="660" height="{bottom + 62}" fill="white"/>',
        '<text x="20" y="24" font-size="15">Output tokens/s, on over off, never running dry</text>',
    ]
    for tick in (0.5, 1, 2, 4, 8):
        x, shade = across(tick), "#333" if tick == 1 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="{bottom}" stroke="{shade}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick} ×</text>')
    parts.append(f'<text x="{right:.1f}" y="{bottom + 16}" text-anchor="middle">10 × +</text>')
    places = {technique.name: 62 + height * i for i, technique in enumerate(TECHNIQUES)}
    for name, y in places.items():
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{name}</text>')
    for name, case, trace_name, gain in gains(rows):
        x, y, colour = across(gain), places[name], COLOURS[case]
        fill = colour if trace_name == "azure" else "white"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2" opacity="0.85">'
            f"<title>{name}, {case}, {TITLES[trace_name]}: {gain:.2f} ×</title></circle>"
        )
    for i, (case, colour) in enumerate(COLOURS.items()):
        x = 30 + 110 * i
        parts.append(f'<circle cx="{x}" cy="{bottom + 42}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 10}" y="{bottom + 46}">{case}</text>')
    parts.append(f'<text x="480" y="{bottom + 46}">filled: Azure, open: Mooncake</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    parser.add_argument("--svg", type=Path, help="write the picture there")
    options = parser.parse_args()
    jobs = [(case, name, 0.1 if options.quick else 1.0) for name in REQUESTS for case in CASES]
    rows: list[dict[str, Any]] = []
    with local_executor(options.workers) as pool:
        for found in pool.map(measure_case, jobs):
            rows += found
            print(f"{found[0]['case']}, {found[0]['trace']}, {found[0]['rate']:.2f} requests/s")
            for row in found:
                cells = "  ".join(f"{cell(row, name, form):>22}" for name, _, form in COLUMNS)
                print(f"  {row['technique']:46}{cells}  {note(row)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.markdown:
        options.markdown.write_text(as_markdown(rows))
    if options.svg:
        options.svg.write_text(as_svg(rows))


if __name__ == "__main__":
    main()
