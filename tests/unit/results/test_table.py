"""The printed table, line for line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.results import Intervals, Summary, format_table, summarize

VLLM_PART = """\
============ Serving Benchmark Result ============
Successful requests:                     3         
Failed requests:                         0         
Maximum request concurrency:             8         
Request rate configured (RPS):           1.50      
Benchmark duration (s):                  2.50      
Total input tokens:                      600       
Total generated tokens:                  9         
Request throughput (req/s):              1.20      
Request goodput (req/s):                 0.80      
Output token throughput (tok/s):         3.60      
Peak output token throughput (tok/s):    5.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          243.60    
---------------Time to First Token----------------
Mean TTFT (ms):                          300.00    
Median TTFT (ms):                        300.00    
P99 TTFT (ms):                           496.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          300.00    
Median TPOT (ms):                        300.00    
P99 TPOT (ms):                           496.00    
---------------Inter-token Latency----------------
Mean ITL (ms):                           233.33    
Median ITL (ms):                         100.00    
P99 ITL (ms):                            725.00    
----------------End-to-end Latency----------------
Mean E2EL (ms):                          766.67    
Median E2EL (ms):                        500.00    
P99 E2EL (ms):                           1480.00   
=================== Simulator ====================
"""  # noqa: W291


def test_vllms_table_comes_first(summary: Summary) -> None:
    text = format_table(
        summary, percentile_metrics=("ttft", "tpot", "itl", "e2el"), request_rate=1.5, max_concurrency=8
    )
    assert text.startswith(VLLM_PART)
    assert text.endswith("=" * 50 + "\n")


def test_what_was_not_configured_is_not_printed(three: Any) -> None:
    builder, itl, series = three
    text = format_table(summarize(builder.build(), itl, series))
    for absent in ("goodput", "concurrency:", "Request rate", "E2EL", "Cancelled"):
        assert absent not in text
    assert "Rejected requests:                       0" in text


def test_rows_for_the_chosen_percentiles(three: Any) -> None:
    builder, itl, series = three
    chosen = summarize(builder.build(), itl, series, percentiles=(90, 99.9))
    text = format_table(chosen, percentile_metrics=("ttft",), percentiles=(90, 99.9))
    assert "P90 TTFT (ms):                           460.00" in text
    assert "P99.9 TTFT (ms):                         499.60" in text


def test_intervals_follow_the_value(three: Any) -> None:
    builder, itl, series = three
    first = summarize(builder.build(), itl, series)
    second = summarize(builder.build(), itl, series, end_time=5.0)
    text = format_table(first.with_intervals([first, second], level=0.5))
    # Student's t with one degree of freedom has its quartiles at ±1; mean 3.75, s = 2.5/√2, so ±1.25.
    assert "Benchmark duration (s):                  3.75       [2.50, 5.00]" in text


def test_whole_numbers_have_whole_bounds_and_what_cannot_vary_has_none(three: Any) -> None:
    builder, itl, series = three
    summary = summarize(builder.build(), itl, series)
    values = {"completed": (3.0, 3.0), "max_batch_size": (1.4, 2.5)}
    text = format_table(replace(summary, intervals=Intervals(0.9, 32, "run", values)))
    assert "Successful requests:                     3         \n" in text
    assert f"{'Peak batch size:':<40} {summary['max_batch_size']:<10} [1, 3]\n" in text
