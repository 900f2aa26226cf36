"""The printed result: the table of vLLM's benchmark, line for line, then the simulator's own block.

Width 50: a label of 40 characters, a blank, a value of 10 (vllm/benchmarks/serve.py). Where a summary has
intervals they follow the value as ``[low, high]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.results.latencies import LATENCIES
from simulator.results.metric import LatencyMetric, Metric, Number
from simulator.results.metrics import METRICS
from simulator.results.summary import Summary, percentile_word

WIDTH, LABEL, VALUE = 50, 40, 10
OWN_BLOCK = 100  # order of the first row below vLLM's table
VLLM_METRICS = ("ttft", "tpot", "itl")
QUIET_WHEN_ZERO = frozenset({"cancelled", "lost", "running", "waiting", "swapped", "in_transfer"})


def format_table(
    summary: Summary,
    *,
    percentile_metrics: Sequence[str] = VLLM_METRICS,
    percentiles: Sequence[float] = (99.0,),
    request_rate: float = math.inf,
    max_concurrency: int | None = None,
    own: bool = True,
) -> str:
    """The table as text, with the simulator's *own* block or, for what a client measured, without.

    *percentile_metrics* and *percentiles* choose the latency blocks (add ``e2el``) and their rows, as vLLM's
    options of the same names do; *request_rate* (requests/s) and *max_concurrency* are printed when they were
    set.
    """
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    for m in sorted(METRICS, key=lambda m: m.order):
        if m.order < OWN_BLOCK and not (m.tag == "request_goodput" and not summary.goodput):
            lines += _configured(m, request_rate, max_concurrency)
            lines.append(scalar_row(summary, m))
    for latency in LATENCIES:
        if latency.tag in percentile_metrics:
            lines += latency_block(summary, latency, percentiles)
    lines += speculation_block(summary)
    if own:
        lines += own_block(summary, percentiles)
    return "\n".join([*lines, "=" * WIDTH]) + "\n"


SPECULATION = (
    ("spec_decode_acceptance_rate", "Acceptance rate (%):", ".2f"),
    ("spec_decode_acceptance_length", "Acceptance length:", ".2f"),
    ("spec_decode_num_drafts", "Drafts:", "d"),
    ("spec_decode_draft_tokens", "Draft tokens:", "d"),
    ("spec_decode_accepted_tokens", "Accepted tokens:", "d"),
)
"""vLLM's block of a run with speculative decoding: key, label, format."""


def speculation_block(summary: Summary) -> list[str]:
    """What became of the drafts; nothing without speculation."""
    drafts = summary.sample.drafts
    if drafts is None:
        return []
    lines = [f"{'Speculative Decoding':-^{WIDTH}}"]
    lines += [_row(label, summary, key, display) for key, label, display in SPECULATION]
    lines.append("Per-position acceptance (%):")
    rates = enumerate(drafts.per_position)
    return lines + [f"{f'  Position {i}:':<{LABEL}} {100 * rate:<{VALUE}.2f}" for i, rate in rates]


def own_block(summary: Summary, percentiles: Sequence[float]) -> list[str]:
    """What only a simulator knows: the fate of every request, the KV cache, the queue."""
    lines = [f"{' Simulator ':=^{WIDTH}}"]
    for m in sorted(METRICS, key=lambda m: m.order):
        hidden = m.order < OWN_BLOCK or (m.tag in QUIET_WHEN_ZERO and not summary[m.tag])
        if m.display and not hidden:
            lines.append(scalar_row(summary, m))
    queue = next(m for m in LATENCIES if m.tag == "queue_time")
    return lines + latency_block(summary, queue, percentiles)


def latency_block(summary: Summary, m: LatencyMetric, percentiles: Sequence[float]) -> list[str]:
    """Title and the rows Mean, Median and one per percentile, in ms."""
    header = f"{m.header} (ms)" if "(" not in m.header else m.header
    rows = [("Mean", "mean"), ("Median", "median")]
    rows += [(percentile_word(p).upper(), percentile_word(p)) for p in percentiles]
    lines = [f"{m.title:-^{WIDTH}}"]
    return lines + [_row(f"{word} {header}:", summary, f"{key}_{m.tag}_ms", ".2f") for word, key in rows]


def scalar_row(summary: Summary, m: Metric) -> str:
    """One line: label and value, and its interval if there is one."""
    return _row(m.header, summary, m.tag, m.display)


def _configured(before: Metric, request_rate: float, max_concurrency: int | None) -> list[str]:
    """vLLM prints the configured load, when there is one, between the counts and the duration."""
    if before.tag != "duration":
        return []
    lines = []
    if max_concurrency is not None:
        lines.append(f"{'Maximum request concurrency:':<{LABEL}} {max_concurrency:<{VALUE}}")
    if math.isfinite(request_rate):
        lines.append(f"{'Request rate configured (RPS):':<{LABEL}} {request_rate:<{VALUE}.2f}")
    return lines


def _row(label: str, summary: Summary, key: str, display: str) -> str:
    line = f"{label:<{LABEL}} {format_value(summary.values.get(key), display):<{VALUE}}"
    pair = summary.intervals.values.get(key) if summary.intervals else None
    if pair is None or pair[0] == pair[1] == summary.values[key]:  # what no draw can change
        return line
    return f"{line} {format_interval(pair, display)}"


def format_interval(pair: tuple[float, float], display: str) -> str:
    """``[low, high]`` in the format of the value; whole numbers are rounded outwards."""
    low, high = pair
    if display == "d" and math.isfinite(low) and math.isfinite(high):
        low, high = math.floor(low), math.ceil(high)
    return f"[{format_value(low, display)}, {format_value(high, display)}]"


def format_value(value: Number, display: str) -> str:
    """*value* in its format; percentages without the sign, which is in the label; a dash for what does not
    exist.
    """
    if value is None or not math.isfinite(value):
        return "-"
    return format(value, display).rstrip("%")
