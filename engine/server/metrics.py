"""Prometheus metrics under vLLM's names (docs/design/metrics.md), in the text format 0.0.4.

Histograms hold whole requests but for the latency between tokens. Buckets are vLLM's orders of magnitude.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engine.stats import Stats

__all__ = ["METRICS", "Metrics", "RequestTimes"]

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip  # noqa: E501
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

METRICS = {
    "num_requests_running": ("gauge", "Requests in the running batch"),
    "num_requests_waiting": ("gauge", "Requests that wait for blocks or a seat"),
    "kv_cache_usage_perc": ("gauge", "Fraction of KV blocks in use, 0 to 1"),
    "cache_config_info": ("gauge", "The KV cache, in labels: blocks and tokens per block"),
    "num_preemptions_total": ("counter", "Preemptions since the start"),
    "prefix_cache_queries_total": ("counter", "Prompt tokens looked up in the prefix cache"),
    "prefix_cache_hits_total": ("counter", "Prompt tokens found in the prefix cache"),
    "prompt_tokens_total": ("counter", "Prompt tokens of finished requests"),
    "generation_tokens_total": ("counter", "Tokens generated"),
    "request_success_total": ("counter", "Finished samples by finished_reason"),
    "request_prompt_tokens": ("histogram", "Prompt tokens of a request"),
    "request_generation_tokens": ("histogram", "Tokens generated for a sample"),
    "time_to_first_token_seconds": ("histogram", "Arrival to first token"),
    "inter_token_latency_seconds": ("histogram", "Between two tokens of a sample"),
    "e2e_request_latency_seconds": ("histogram", "Arrival to last token"),
    "request_queue_time_seconds": ("histogram", "Arrival to first scheduled"),
    "request_prefill_time_seconds": ("histogram", "First scheduled to first token"),
    "request_decode_time_seconds": ("histogram", "First to last token"),
}


@dataclass
class RequestTimes:
    """One sample's events, seconds of the executor's clock."""

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    tokens: int = 0


@dataclass
class Histogram:
    """Cumulative counts by upper bound."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Metrics:
    """What the server has seen. Safe to call from several threads."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._lock = threading.Lock()
        self._counters = {"prompt_tokens_total": 0, "generation_tokens_total": 0}
        self._success: dict[str, int] = {}
        self._histograms = {
            name: Histogram(TOKENS if name.endswith("tokens") else SECONDS)
            for name, (kind, _) in METRICS.items()
            if kind == "histogram"
        }

    def tokens(self, times: RequestTimes, count: int, now: float) -> None:
        """*count* tokens of a sample have come."""
        if not count:
            return
        with self._lock:
            if times.first_token is None:
                times.first_token = now
                self._histograms["time_to_first_token_seconds"].observe(now - times.arrival)
            elif times.last_token is not None:
                gap = (now - times.last_token) / count
                self._histograms["inter_token_latency_seconds"].observe(gap, count)
            times.last_token = now
            times.tokens += count
            self._counters["generation_tokens_total"] += count

    def finished(self, times: RequestTimes, prompt_tokens: int, reason: str) -> None:
        """A sample has ended; *prompt_tokens* is 0 for all samples of a request but one."""
        observed: dict[str, float] = {"request_generation_tokens": times.tokens}
        if prompt_tokens:
            observed["request_prompt_tokens"] = prompt_tokens
        if times.last_token is not None and times.first_token is not None:
            observed["e2e_request_latency_seconds"] = times.last_token - times.arrival
            observed["request_decode_time_seconds"] = times.last_token - times.first_token
            if times.scheduled is not None:
                observed["request_queue_time_seconds"] = times.scheduled - times.arrival
                observed["request_prefill_time_seconds"] = times.first_token - times.scheduled
        with self._lock:
            self._success[reason] = self._success.get(reason, 0) + 1
            self._counters["prompt_tokens_total"] += prompt_tokens
            for name, value in observed.items():
                self._histograms[name].observe(value)

    def render(self, stats: Stats) -> str:
        """The exposition text."""
        gauges: dict[str, float] = {
            "num_requests_running": stats.num_running,
            "num_requests_waiting": stats.num_waiting,
            "kv_cache_usage_perc": stats.blocks_used / stats.num_blocks,
            "cache_config_info": 1,
            "num_preemptions_total": stats.num_preemptions,
            "prefix_cache_queries_total": stats.prefix_queries,
            "prefix_cache_hits_total": stats.prefix_hits,
        }
        with self._lock:
            values = {**gauges, **self._counters}
            lines = [line for name in METRICS for line in self._lines(name, values, stats)]
        return "\n".join(lines) + "\n"

    def _lines(self, name: str, values: dict[str, float], stats: Stats) -> Iterator[str]:
        kind, text = METRICS[name]
        label = f'model_name="{escape(self.model_name)}"'
        if name == "cache_config_info":
            label = f'block_size="{stats.block_size}",num_gpu_blocks="{stats.num_blocks}",{label}'
        yield f"# HELP vllm:{name} {text}"
        yield f"# TYPE vllm:{name} {kind}"
        if name in values:
            yield (
                f"vllm:{name}{{{label}}} {values[name]:g}"
                if name not in self._counters
                else (f"vllm:{name}{{{label}}} {values[name]}")
            )
        elif name == "request_success_total":
            for reason, count in sorted(self._success.items()):
                yield f'vllm:{name}{{finished_reason="{reason}",{label}}} {count}'
        else:
            yield from self._buckets(name, label)

    def _buckets(self, name: str, label: str) -> Iterator[str]:
        histogram, below = self._histograms[name], 0
        for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts):
            below += count
            yield f'vllm:{name}_bucket{{le="{bound}",{label}}} {below}'
        yield f"vllm:{name}_sum{{{label}}} {histogram.total:.9g}"
        yield f"vllm:{name}_count{{{label}}} {below}"


def escape(text: str) -> str:
    """A label value."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
