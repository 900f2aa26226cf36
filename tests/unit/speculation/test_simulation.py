"""Runs with speculation: nothing is lost, tokens per step as the closed form says, steps as few as drafts allow."""

import math

import numpy as np
import pytest

from simulator.analytic import SteadyState, Traffic
from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.results import format_table
from simulator.simulation import simulate
from simulator.workload import OUTPUT_ID_BASE, Runs, Trace

LARGE = {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel_size": 4, "default_max_tokens": "exact"}
DRAFT = "method=draft,model=llama-3.2-1b,tokens=4,acceptance={}"


def trace_of(n=120, rate=2.0, seed=0):
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, n)) if math.isfinite(rate) else np.zeros(n)
    return Trace.from_columns(arrivals, rng.integers(20, 900, n), rng.integers(1, 300, n))


def run(speculation, trace, **stated):
    options = {key: stated.pop(key) for key in ("seed", "stepped") if key in stated}
    return simulate(trace, Deployment.of(**{**LARGE, "speculation": speculation, **stated}), **options)


def conserved(result, trace):
    assert result.summary["completed"] == len(trace)
    assert (result.records.output_length == trace.output_length).all()
    assert sum(series.sum("output_tokens") for series in result.series) == trace.output_length.sum()


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("blocks", [None, 120])
def test_every_token_is_delivered_once_also_under_preemption(ahead, blocks):
    trace = trace_of(60, rate=math.inf)
    result = run(DRAFT.format(0.6), trace, async_scheduling=ahead, num_gpu_blocks=blocks)
    conserved(result, trace)
    assert (result.summary["preemptions"] > 0) == (blocks is not None)
    assert all(series.maximum("kv_blocks_used") <= series.num_gpu_blocks for series in result.series)


def test_tokens_per_step_are_those_of_the_closed_form():
    result = run(DRAFT.format(0.7), trace_of(200))
    drafts = result.drafts
    counts = np.repeat(np.arange(5), drafts.by_length)
    expected = (1 - 0.7**5) / 0.3
    assert abs(drafts.acceptance_length - expected) < 4 * counts.std() / math.sqrt(len(counts))
    for position, share in enumerate(drafts.per_position):
        p = 0.7 ** (position + 1)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / drafts.num_drafts)
    assert result.summary["spec_decode_acceptance_length"] == drafts.acceptance_length
    assert "Acceptance length:" in format_table(result.summary)
    assert result.summary.to_json()["spec_decode_per_position_acceptance_rates"] == drafts.per_position


def test_without_a_draft_accepted_the_steps_are_those_of_a_plain_run():
    trace = Trace.from_columns(np.zeros(1), [100], [77])
    plain, drafted = run(None, trace), run(DRAFT.format(0), trace)
    assert drafted.num_iterations == plain.num_iterations
    assert drafted.summary["mean_tpot_ms"] > plain.summary["mean_tpot_ms"]
    assert drafted.drafts.num_accepted_tokens == 0
    assert plain.drafts is None and plain.summary["spec_decode_acceptance_rate"] is None


@pytest.mark.parametrize("output", [1, 2, 5, 6, 7, 101])
def test_with_every_draft_accepted_the_steps_are_a_fifth(output):
    trace = Trace.from_columns(np.zeros(1), [100], [output])
    result = run(DRAFT.format(1), trace, async_scheduling=False)
    assert result.num_iterations == 1 + math.ceil((output - 1) / 5)  # the first token is the prefill's
    conserved(result, trace)


def test_gaps_between_chunks_are_counted_once_per_step_and_tpot_per_token():
    trace = Trace.from_columns(np.zeros(1), [100], [101])
    result = run(DRAFT.format(1), trace, async_scheduling=False)
    assert result.itl.total == 20
    records = result.records
    decode = (records.finish_time - records.first_token_time)[0]
    assert result.itl.mean == pytest.approx(decode / 20)
    assert result.summary["mean_tpot_ms"] == pytest.approx(10 * decode)


def test_what_is_accepted_does_not_depend_on_scheduling():
    trace = trace_of(40, rate=math.inf)
    many = run(DRAFT.format(0.6), trace)
    few = run(DRAFT.format(0.6), trace, max_num_seqs=2)
    replicas = run(DRAFT.format(0.6), trace, num_replicas=3, router="least-outstanding")
    assert many.drafts.by_length == few.drafts.by_length == replicas.drafts.by_length
    assert many.drafts.by_length != run(DRAFT.format(0.6), trace, seed=1).drafts.by_length
    again = run(DRAFT.format(0.6), trace)
    assert (again.records.finish_time == many.records.finish_time).all()


def test_it_gains_on_an_idle_replica_and_loses_on_a_full_one():
    # 256 sequences with 6 tokens each are bound by FLOPs, one is bound by the bytes of the weights
    speculation = "method=draft,model=llama-3.2-1b,tokens=5,acceptance=0.7"
    single, full = (Trace.from_columns(np.zeros(n), np.full(n, 200), np.full(n, 100)) for n in (1, 256))
    gain = [
        run(speculation, trace).summary["output_throughput"] / run(None, trace).summary["output_throughput"]
        for trace in (single, full)
    ]
    assert gain[0] > 1.3 and gain[1] < 1.0


@pytest.mark.parametrize("method", ["eagle", "medusa", "ngram"])
@pytest.mark.parametrize("system", ["vllm", "vllm-0.11"])
def test_methods_and_releases(method, system):
    trace = trace_of(40, rate=math.inf)
    result = run(f"method={method},tokens=3,acceptance=0.8/0.5/0.4", trace, system=system, num_gpu_blocks=150)
    conserved(result, trace)


@pytest.mark.parametrize("method", ["draft", "eagle"])
def test_a_conversation_finds_what_was_said_and_not_what_was_guessed(method):
    # the second turn's prompt is the first's 160 tokens, its answer of 41, whose last token was never computed, and 99
    ids = np.array([1, 1, OUTPUT_ID_BASE, 2])
    content = Runs(np.array([0, 1, 4]), ids, np.array([160, 160, 41, 99]))
    trace = Trace.from_columns([0.0, 30.0], [160, 300], [41, 10], content=content)
    model = ",model=llama-3.2-1b" if method == "draft" else ""
    result = run(f"method={method}{model},tokens=4,acceptance=0.9", trace)
    assert result.records.cached_tokens[1] == {"draft": 192, "eagle": 176}[method]


def test_a_cluster_pools_what_its_replicas_drafted():
    deployment = {**LARGE, "speculation": DRAFT.format(0.6)}
    trace = trace_of(40, rate=math.inf)
    spec = ClusterSpec.of(pools={"a": {"deployment": deployment, "replicas": 2}}, router="round-robin")
    clustered = simulate(trace, spec)
    assert clustered.summary["spec_decode_num_drafts"] == run(DRAFT.format(0.6), trace).drafts.num_drafts


def test_the_steady_state_is_that_of_a_simulation():
    deployment = Deployment.of(**LARGE, speculation=DRAFT.format(0.7)).resolve()
    rng = np.random.default_rng(5)
    n, rate = 600, 1.5
    trace = Trace.from_columns(np.cumsum(rng.exponential(1 / rate, n)), np.full(n, 500), np.full(n, 200))
    found = simulate(trace, deployment).summary
    state = SteadyState(deployment, Traffic(rate, (500.0,), 200.0))
    assert state.stable
    assert 1000 * state.tpot_s == pytest.approx(found["mean_tpot_ms"], rel=0.06)
    assert 1000 * state.ttft_s == pytest.approx(found["mean_ttft_ms"], rel=0.15)
