"""Every system that has speculation, on a pool too small for its requests: nothing is lost, nothing is kept."""

import numpy as np
import pytest
import simpy

from simulator.cluster import Cluster
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError
from simulator.results import summarize
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.system import find_system, list_systems
from simulator.workload import Trace

SPECULATING = sorted(system.name for system in list_systems() if system.speculation)
SMALL = {
    "vllm": {"num_gpu_blocks": 30, "block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 40},
    "vllm-0.11": {"num_gpu_blocks": 30, "block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 40},
    "sglang": {"max_total_tokens": 140, "max_running_requests": 6, "chunked_prefill_size": 32},
    "tgi": {"max_batch_total_tokens": 140, "max_batch_prefill_tokens": 64},
    "tgi-2": {"max_batch_total_tokens": 160, "max_batch_prefill_tokens": 64, "block_size": 4},
    "llama.cpp": {"num_kv_cells": 512, "n_parallel": 3, "n_batch": 64, "n_ubatch": 32, "cache_ram_mib": 0},
    "hf-static": {"max_total_tokens": 130},
    "gpt-fast": {"max_total_tokens": 130},
}
TRTLLM = {"num_blocks": 30, "tokens_per_block": 4, "max_batch_size": 6, "max_num_tokens": 120}


class FakeStepTime:
    """Time grows with what is computed."""

    def seconds(self, num_decodes, decode_context, prefills=()):
        return 0.01 + 1e-3 * num_decodes + 1e-5 * decode_context + 1e-4 * sum(chunk for chunk, _ in prefills)


def replay(name, rate, k=3, seed=0, **more):
    system = find_system(name)
    drafting = Drafting((rate,) * k, k + 1, lookahead=k, drops_last_hit=name.startswith("vllm"), seed=seed)
    limits = {**SMALL.get(name, TRTLLM), **system.speculative_fixed, **more}
    rng = np.random.default_rng(seed)
    n = 40
    trace = Trace.from_columns(np.sort(rng.uniform(0, 4, n)), rng.integers(1, 60, n), rng.integers(1, 50, n))
    env = simpy.Environment()
    cluster = Cluster(
        env, trace, trace.output_length, lambda: system.scheduler(drafting=drafting, **limits), FakeStepTime()
    )
    env.run()
    return trace, cluster.replicas[0], cluster.records.build()


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", SPECULATING)
def test_all_tokens_come_and_all_memory_returns(name, rate):
    trace, replica, records = replay(name, rate)
    summary = summarize(records, replica.itl, replica.series)
    assert summary["completed"] == len(trace)
    assert (records.output_length == trace.output_length).all()
    if replica.scheduler.delivery == "step":
        assert replica.series.sum("output_tokens") == trace.output_length.sum()
    assert replica.series.maximum("kv_blocks_used") <= replica.scheduler.num_blocks
    cached = replica.scheduler.blocks_cached if name == "llama.cpp" else 0  # its idle slots keep their cells
    assert replica.scheduler.blocks_used in (0, cached)
    assert not replica.scheduler.running and not replica.drafts.paths


@pytest.mark.parametrize("name", SPECULATING)
def test_what_is_accepted_is_the_same_under_every_system(name):
    # a preempted sequence starts anew at the token it had: its steps fall otherwise, its easy tokens do not
    _, replica, records = replay(name, 0.6)
    if records.num_preemptions.any():
        return
    _, other, _ = replay("gpt-fast", 0.6)
    assert replica.drafts.counts.by_length == other.drafts.counts.by_length


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm-max-utilization"])
def test_the_pool_was_too_small(name):
    assert replay(name, 0.6)[2].num_preemptions.sum() >= 3


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_slots_that_share_cells_fail_together_where_drafts_find_none(rate):
    unified = {"n_parallel": -1, "num_kv_cells": 256, "cache_idle_slots": False}
    trace, replica, records = replay("llama.cpp", rate, **unified)
    assert records.counts()["finished"] + records.counts()["failed"] == len(trace)
    assert records.counts()["failed"] > 0 or rate > 0  # with drafts accepted answers leave sooner
    done = records.status == 0
    assert (records.output_length[done] == trace.output_length[done]).all()
    assert replica.scheduler.blocks_used == 0 and not replica.scheduler.running


def test_deciding_ahead_loses_nothing_either():
    for rate in (0.0, 0.6, 1.0):
        trace, replica, records = replay("vllm", rate, async_scheduling=True)
        assert (records.output_length == trace.output_length).all()
        assert replica.series.sum("output_tokens") == trace.output_length.sum()
        assert replica.scheduler.blocks_used == 0 and records.num_preemptions.any()


@pytest.mark.parametrize(
    ("system", "method", "option", "value"),
    [
        ("sglang", "eagle", "max_running_requests", 48),
        ("sglang", "eagle", "disable_overlap_schedule", True),
        ("tgi", "medusa", "prefill_chunking", False),
        ("hf-static", "ngram", "max_batch_size", 1),
    ],
)
def test_what_a_system_sets_with_speculation_is_said(system, method, option, value):
    speculation = f"method={method},tokens=3,acceptance=0.5"
    resolved = Deployment.of(system=system, speculation=speculation).resolve()
    assert resolved.limits[option] == value
    assert any(line.startswith(f"{option}: {value} (with speculation") for line in resolved.chosen)
    resolved.scheduler()


def test_what_speculation_leaves_no_choice_in_cannot_be_stated_otherwise():
    speculation = "method=ngram,tokens=3,acceptance=0.5"
    with pytest.raises(ConfigurationError, match="needs max_batch_size 1"):
        Deployment.of(system="hf-static", speculation=speculation, options={"max_batch_size": 4}).resolve()
    stated = Deployment.of(system="sglang", speculation=speculation, options={"max_running_requests": 100})
    assert stated.resolve().limits["max_running_requests"] == 100


def test_a_tree_checks_more_tokens_than_it_is_deep():
    chain = "method=eagle,tokens=3,acceptance=0.6/0.4/0.25"
    tree = "method=eagle,tokens=3,acceptance=0.8/0.65/0.5,tree=21"
    steps = [Deployment.of(model="qwen3-8b", system="sglang", speculation=s).resolve() for s in (chain, tree)]
    assert [found.steptime.width for found in steps] == [4, 22]
    gains = {
        batch: [
            found.tokens_per_step
            * found.steptime.plain.seconds(batch, 1000 * batch)
            / found.steptime.seconds(batch, 1000 * batch)
            for found in steps
        ]
        for batch in (1, 64)
    }
    # arXiv 2601.11580, figure 2: a tree of 21 gains over a chain at batch 1 and loses at batch 64
    assert gains[1][1] > gains[1][0] and gains[64][1] < 1.0 < gains[64][0]
