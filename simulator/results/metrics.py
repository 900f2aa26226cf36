"""The numbers of a run, one record each: counts, rates and shares, as vLLM's benchmark defines them where it
has them.

The docstring of a metric's function is its formula; ``docs/reference/metrics.md`` repeats it and a test
compares them. Unless a formula says otherwise only finished requests count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from simulator.results import records as r
from simulator.results.goodput import meets
from simulator.results.metric import Metric, Number, formula_of
from simulator.results.queueing import mean_waiting, most_waiting
from simulator.results.sample import Sample
from simulator.results.series import pooled_mean

_Scalar = TypeVar("_Scalar", bound=Callable[[Sample], Number])

METRICS: list[Metric] = []


def metric(tag: str, header: str, unit: str, order: int, display: str = "") -> Callable[[_Scalar], _Scalar]:
    """Register the decorated function as the `Metric` *tag*; its docstring is the formula."""

    def register(compute: _Scalar) -> _Scalar:
        METRICS.append(Metric(tag, header, unit, order, display, compute, formula_of(compute)))
        return compute

    return register


@metric("completed", "Successful requests:", "requests", 1, "d")
def completed(sample: Sample) -> Number:
    """number of requests with status finished"""
    return sample.completed


@metric("failed", "Failed requests:", "requests", 2, "d")
def failed(sample: Sample) -> Number:
    """number of requests with status failed; vLLM's client would count rejected, cancelled and lost ones here
    too
    """
    return sample.records.count(r.FAILED)


@metric("duration", "Benchmark duration (s):", "s", 5, ".2f")
def duration(sample: Sample) -> Number:
    """end of the run − start; start: first arrival (+ warm-up); end: last finish, or where the run was cut
    off
    """
    return sample.duration


@metric("total_input_tokens", "Total input tokens:", "tokens", 6, "d")
def total_input_tokens(sample: Sample) -> Number:
    """Σ input_length"""
    return int(sample.input_length.sum())


@metric("total_output_tokens", "Total generated tokens:", "tokens", 7, "d")
def total_output_tokens(sample: Sample) -> Number:
    """Σ output_length"""
    return int(sample.output_length.sum())


@metric("request_throughput", "Request throughput (req/s):", "requests/s", 8, ".2f")
def request_throughput(sample: Sample) -> Number:
    """completed / duration"""
    return sample.per_second(sample.completed)


@metric("request_goodput", "Request goodput (req/s):", "requests/s", 9, ".2f")
def request_goodput(sample: Sample) -> Number:
    """number of finished requests that meet every objective / duration; a single-token request has TPOT 0
    here
    """
    if not sample.goodput:
        return None
    seconds = {"ttft": sample.ttft, "tpot": sample.tpot, "e2el": sample.e2el}
    return sample.per_second(int(meets(sample.goodput, seconds).sum()))


@metric("output_throughput", "Output token throughput (tok/s):", "tokens/s", 10, ".2f")
def output_throughput(sample: Sample) -> Number:
    """total_output_tokens / duration"""
    return sample.per_second(int(sample.output_length.sum()))


@metric("max_output_tokens_per_s", "Peak output token throughput (tok/s):", "tokens/s", 11, ".2f")
def max_output_tokens_per_s(sample: Sample) -> Number:
    """largest number of tokens delivered in one of the one-second windows that begin with the run"""
    return float(sample.tokens_per_second().max(initial=0.0))


@metric("max_concurrent_requests", "Peak concurrent requests:", "requests", 12, ".2f")
def max_concurrent_requests(sample: Sample) -> Number:
    """largest number of finished requests that were in the system at some moment of the same one-second
    window
    """
    if not sample.completed:
        return 0
    origin = sample.arrival_time.min()
    first = np.floor(sample.arrival_time - origin).astype(np.int64)
    last = np.floor(sample.finish_time - origin).astype(np.int64)
    change = np.bincount(first, minlength=last.max() + 2) - np.bincount(last + 1, minlength=last.max() + 2)
    return int(np.cumsum(change).max())


@metric("total_token_throughput", "Total token throughput (tok/s):", "tokens/s", 13, ".2f")
def total_token_throughput(sample: Sample) -> Number:
    """(total_input_tokens + total_output_tokens) / duration"""
    return sample.per_second(int(sample.input_length.sum() + sample.output_length.sum()))


def _status_count(code: int, order: int) -> None:
    name = r.STATUS[code]

    def compute(sample: Sample) -> Number:
        return sample.records.count(code)

    compute.__doc__ = f"number of requests with status {name}"
    metric(name, f"{name.replace('_', ' ').capitalize()} requests:", "requests", order, "d")(compute)


@metric("injected", "Injected requests:", "requests", 100, "d")
def injected(sample: Sample) -> Number:
    """completed + running + waiting + swapped + in_transfer + rejected + failed + cancelled + lost"""
    return int(np.count_nonzero(sample.records.status >= 0))


for _order, _code in enumerate(
    (r.REJECTED, r.CANCELLED, r.LOST, r.RUNNING, r.WAITING, r.SWAPPED, r.IN_TRANSFER), start=101
):
    _status_count(_code, _order)


@metric("preemptions", "Preemptions:", "times", 110, "d")
def preemptions(sample: Sample) -> Number:
    """Σ num_preemptions over all requests"""
    return int(sample.records.num_preemptions.sum())


@metric("cached_tokens", "Prompt tokens from prefix cache:", "tokens", 111, "d")
def cached_tokens(sample: Sample) -> Number:
    """Σ cached_tokens over all scheduled requests"""
    return int(sample.records.cached_tokens[sample.scheduled].sum())


@metric("prefix_cache_hit_rate", "Prefix cache hit rate (%):", "1", 112, ".2%")
def prefix_cache_hit_rate(sample: Sample) -> Number:
    """cached_tokens / Σ input_length over all scheduled requests"""
    asked = int(sample.records.input_length[sample.scheduled].sum())
    return int(sample.records.cached_tokens[sample.scheduled].sum()) / asked if asked else None


@metric("kv_cache_usage_mean", "Mean KV cache usage (%):", "1", 113, ".2%")
def kv_cache_usage_mean(sample: Sample) -> Number:
    """time average of KV blocks in use / num_gpu_blocks (all replicas)"""
    blocks = sum(s.num_gpu_blocks for s in sample.series)
    return pooled_mean(sample.series, "kv_blocks_used") / blocks if blocks else None


@metric("kv_cache_usage_max", "Peak KV cache usage (%):", "1", 114, ".2%")
def kv_cache_usage_max(sample: Sample) -> Number:
    """largest KV blocks in use / num_gpu_blocks of any replica"""
    usages = [s.maximum("kv_blocks_used") / s.num_gpu_blocks for s in sample.series if s.num_gpu_blocks]
    return max(usages, default=None)


@metric("mean_batch_size", "Mean batch size:", "requests", 115, ".2f")
def mean_batch_size(sample: Sample) -> Number:
    """requests in the batch, averaged over iterations"""
    iterations = sample.total("iterations")
    return sample.total("batch_iterations") / iterations if iterations else None


@metric("max_batch_size", "Peak batch size:", "requests", 116, "d")
def max_batch_size(sample: Sample) -> Number:
    """largest number of requests in a batch"""
    return int(max((s.maximum("num_running") for s in sample.series), default=0))


@metric("mean_num_waiting", "Mean queue length:", "requests", 117, ".2f")
def mean_num_waiting(sample: Sample) -> Number:
    """requests that have arrived and were not scheduled yet, averaged over the duration; without warm-up and with all
    requests finished it is completed · mean queue time / duration (Little's law)
    """
    return mean_waiting(sample.records, sample.start, sample.start + sample.duration)


@metric("max_num_waiting", "Peak queue length:", "requests", 118, "d")
def max_num_waiting(sample: Sample) -> Number:
    """largest number of requests that have arrived and were not scheduled yet"""
    return most_waiting(sample.records, sample.start, sample.start + sample.duration)


@metric("iterations", "Iterations:", "iterations", 119, "d")
def iterations(sample: Sample) -> Number:
    """model iterations, summed over replicas"""
    return int(sample.total("iterations"))


@metric("busy_fraction", "Time in iterations (%):", "1", 120, ".2%")
def busy_fraction(sample: Sample) -> Number:
    """Σ duration of iterations / Σ span of the replicas"""
    span = sum(s.span() for s in sample.series)
    return sample.total("duration_s") / span if span else None


def _fragmentation(kind: str, order: int, meaning: str) -> None:
    def compute(sample: Sample) -> Number:
        space = sum(s.num_gpu_blocks * s.block_size for s in sample.series)
        return pooled_mean(sample.series, f"waste_{kind}") / space if space else None

    compute.__doc__ = f"time average of KV space {meaning} / size of the KV cache"
    label = "KV space saved by sharing (%):" if kind == "shared" else f"KV waste, {kind} (%):"
    metric(f"fragmentation_{kind}", label, "1", order, ".2%")(compute)


_fragmentation("reserved", 121, "set aside for tokens still to come")
_fragmentation("internal", 122, "in the unfilled part of blocks")
_fragmentation("external", 123, "free but too scattered to be used")
_fragmentation("shared", 124, "saved by sharing blocks between requests")


@metric("spec_decode_num_drafts", "Drafts:", "drafts", 130)
def spec_decode_num_drafts(sample: Sample) -> Number:
    """drafts that the target checked: one per decoding sequence and step in which something was drafted"""
    return None if sample.drafts is None else sample.drafts.num_drafts


@metric("spec_decode_draft_tokens", "Draft tokens:", "tokens", 131)
def spec_decode_draft_tokens(sample: Sample) -> Number:
    """Σ tokens of the drafts"""
    return None if sample.drafts is None else sample.drafts.num_draft_tokens


@metric("spec_decode_accepted_tokens", "Accepted tokens:", "tokens", 132)
def spec_decode_accepted_tokens(sample: Sample) -> Number:
    """Σ drafted tokens that the target accepted, those behind an answer's end included"""
    return None if sample.drafts is None else sample.drafts.num_accepted_tokens


@metric("spec_decode_acceptance_rate", "Acceptance rate (%):", "%", 133)
def spec_decode_acceptance_rate(sample: Sample) -> Number:
    """100 · spec_decode_accepted_tokens / spec_decode_draft_tokens"""
    rate = None if sample.drafts is None else sample.drafts.acceptance_rate
    return None if rate is None else 100 * rate


@metric("spec_decode_acceptance_length", "Acceptance length:", "tokens", 134)
def spec_decode_acceptance_length(sample: Sample) -> Number:
    """1 + spec_decode_accepted_tokens / spec_decode_num_drafts: tokens of a checked draft, the target's own included"""
    return None if sample.drafts is None else sample.drafts.acceptance_length
