"""Latencies as users feel them, with the definitions of vLLM's benchmark.

The same words mean other things elsewhere: what guidellm calls TPOT includes the first token, what aiperf
calls ITL is a mean per request. All count from the arrival of the request; only finished requests count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from simulator.results.distribution import Distribution, Values
from simulator.results.metric import LatencyMetric, formula_of
from simulator.results.sample import Sample

_Latency = TypeVar("_Latency", bound=Callable[[Sample], Distribution])

LATENCIES: list[LatencyMetric] = []


def latency(tag: str, header: str, title: str, order: int) -> Callable[[_Latency], _Latency]:
    """Register the decorated function as the `LatencyMetric` *tag*; its docstring is the formula."""

    def register(compute: _Latency) -> _Latency:
        LATENCIES.append(LatencyMetric(tag, header, title, order, compute, formula_of(compute)))
        return compute

    return register


@latency("ttft", "TTFT", "Time to First Token", 1)
def ttft(sample: Sample) -> Distribution:
    """first_token_time − arrival_time"""
    return Values(sample.ttft)


@latency("tpot", "TPOT", "Time per Output Token (excl. 1st token)", 2)
def tpot(sample: Sample) -> Distribution:
    """(E2EL − TTFT) / (output_length − 1), for requests with output_length > 1"""
    return Values(sample.tpot)


@latency("itl", "ITL", "Inter-token Latency", 3)
def itl(sample: Sample) -> Distribution:
    """every gap between successive tokens, pooled over all requests"""
    return sample.itl


@latency("e2el", "E2EL", "End-to-end Latency", 4)
def e2el(sample: Sample) -> Distribution:
    """finish_time − arrival_time"""
    return Values(sample.e2el)


@latency("queue_time", "Queue (ms)", "Queue Time", 5)
def queue_time(sample: Sample) -> Distribution:
    """first_scheduled_time − arrival_time"""
    return Values(sample.queue_time)


@latency("normalized_latency", "Norm. latency", "Normalized Latency per Output Token", 6)
def normalized_latency(sample: Sample) -> Distribution:
    """E2EL / output_length (Orca, OSDI 2022)"""
    output = sample.output_length
    return Values(sample.e2el[output > 0] / output[output > 0])
