"""Statistics of the recorded traces against those that were measured on the same files by other code."""

import numpy as np
import pytest

from simulator.workload import Runs, Trace, poisson_arrivals, read_trace
from simulator.workload.stats import reused_tokens, trace_stats

MEASURED = {
    "azure/AzureLLMInferenceTrace_code.csv": (
        (2047.8, 1469, 5188, 7436, 7437),
        (27.9, 13, 55, 251, 1899),
        (2.567, 3435.9, 13.15, 13.2, 71.6, 164),
    ),
    "azure/AzureLLMInferenceTrace_conv.csv": (
        (1154.7, 1020, 2734, 4142, 14050),
        (211.1, 129, 424, 601, 1000),
        (5.530, 3501.7, 1.094, 1.39, 3.86, 16.1),
    ),
    "mooncake/conversation_trace.jsonl": (
        (12035, 6909, 27367, 85400, 126195),
        (342.6, 350, 597, 1119, 2000),
        (3.401, 3537.0, 3.03, 7.90, 2.10, 2.95),
    ),
    "mooncake/synthetic_trace.jsonl": (
        (15325, 11587, 38611, 66456, 191378),
        (149.1, 69, 389, 768, 893),
        (3.907, 1022.0, 1.011, 1.09, 1.18, 1.19),
    ),
    "ragpulse/0_trace.jsonl": (
        (2944, 3140, 3958, 5438, 7712),
        (283.2, 234, 563, 891, 2183),
        (0.01175, 604603, 3.06, 1.01, None, 1.73),
    ),
}
"""Input and output lengths (mean, p50, p90, p99, max); req/s, span s, CV of gaps, IDC at 1, 10 and 60 s."""


@pytest.mark.parametrize("name", MEASURED)
def test_recorded_traces(real, name: str) -> None:
    prompt, output, arrivals = MEASURED[name]
    stats = trace_stats(read_trace(real(name)))
    for measured, q in ((prompt, stats.input_length), (output, stats.output_length)):
        assert (q.mean, q.p50, q.p90, q.p99, q.max) == pytest.approx(measured, rel=2e-3, abs=0.6)
    ours = (stats.request_rate, stats.span_s, stats.cv, *stats.idc.values())
    for value, measured_value in zip(ours, arrivals):
        assert measured_value is None or value == pytest.approx(measured_value, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tokens", "requests"),
    [
        ("mooncake/conversation_trace.jsonl", 0.374, 0.9999),
        ("mooncake/synthetic_trace.jsonl", 0.651, 0.446),
        ("ragpulse/0_trace.jsonl", 0.315, None),
    ],
)
def test_prefix_reuse_of_an_infinite_cache(real, name: str, tokens: float, requests: float | None) -> None:
    stats = trace_stats(read_trace(real(name)))
    assert stats.prefix_reuse == pytest.approx(tokens, abs=0.0015)
    if requests is not None:
        assert stats.requests_with_reuse == pytest.approx(requests, abs=0.001)


def test_ragpulse_conversations(real) -> None:
    stats = trace_stats(read_trace(real("ragpulse/0_trace.jsonl")))
    assert stats.sessions == 3990
    assert stats.turns_per_session == pytest.approx(1.78, abs=0.005)


def test_length_only_files(real) -> None:
    stats = trace_stats(
        read_trace(real("sarathi/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"), request_rate=float("inf"))
    )
    assert stats.input_length.mean == pytest.approx(2340, rel=1e-3)
    assert stats.output_length.p99 == pytest.approx(998, abs=1)


def test_coarse_clocks_are_seen(real) -> None:
    assert trace_stats(read_trace(real("mooncake/conversation_trace.jsonl"))).quantum_s == pytest.approx(
        3, abs=0.002
    )
    assert trace_stats(read_trace(real("ragpulse/0_trace.jsonl"))).quantum_s == 1


def test_poisson_has_ones_everywhere() -> None:
    n = 100_000
    times = poisson_arrivals(n, 10.0, np.random.default_rng(1))
    stats = trace_stats(Trace.from_columns(times, np.ones(n, int), np.ones(n, int)))
    assert stats.cv == pytest.approx(1, rel=0.02)
    assert stats.idc[1] == pytest.approx(1, rel=0.05) and stats.idc[10] == pytest.approx(1, rel=0.15)


def test_reuse_counts_leading_tokens_and_earlier_outputs() -> None:
    from simulator.workload import OUTPUT_ID_BASE

    content = Runs(
        np.array([0, 2, 3, 6, 8]),
        np.array([0, 1, 0, 0, 1, OUTPUT_ID_BASE, 5, 0]),
        np.array([10, 10, 15, 10, 10, 7, 3, 10]),
    )
    trace = Trace.from_columns([0.0, 1, 2, 3], [20, 15, 30, 13], [7, 1, 1, 1], content=content)
    assert reused_tokens(trace).tolist() == [0, 10, 27, 0]


def test_a_single_request_has_no_gaps() -> None:
    stats = trace_stats(Trace.from_columns([0.0], [5], [6]))
    assert np.isnan(stats.cv) and stats.request_rate == float("inf") and stats.span_s == 0
