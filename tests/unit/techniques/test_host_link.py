"""What goes over the host link: KV blocks that come back from host memory, swapped sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.host_tier import HostTier
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v1_extended import ExtendedV1
from simulator.workload import Runs

BLOCK = 16 * 32 * 2 * 8 * 128 * 2
"""Bytes of 16 tokens of Llama-3.1-8B."""


def resolve(**stated: Any) -> Any:
    return Deployment.of(**{"model": "llama-3.1-8b", "gpu": "h100", **stated}).resolve()


def prompts(ids: list[int], length: int = 160, gap: float = 5.0) -> Trace:
    n = len(ids)
    content = Runs(np.arange(n + 1), np.array(ids), np.full(n, length))
    return Trace.from_columns(
        gap * np.arange(n), [length + 1] * n, [16] * n, max_tokens=[16] * n, content=content
    )


def test_the_host_tier_is_counted_in_blocks_of_all_ranks() -> None:
    one, two = (resolve(kv_offloading_size=10.0, tensor_parallel_size=tp) for tp in (1, 2))
    assert one.equipment.host_blocks == two.equipment.host_blocks == 10 * 2**30 // BLOCK
    links = [resolved.equipment.moves.swap_in.block_s for resolved in (one, two)]
    assert links == [BLOCK / (0.8 * 63e9), BLOCK / (0.8 * 63e9) / 2]


def test_what_left_the_gpu_is_loaded_instead_of_computed() -> None:
    """A cache of 14 blocks holds one prompt of 10 and its output, not two: the second visit of each is a load."""
    small = {"num_gpu_blocks": 14, "max_model_len": 200}
    without, with_tier = (
        simulate(prompts([1, 2, 1, 2]), resolve(**small, **more))
        for more in ({}, {"kv_offloading_size": 1.0})
    )
    assert without.records.cached_tokens.tolist() == [
        0,
        0,
        48,
        48,
    ]  # 4 of 14 blocks are free, the other prompt takes 11
    assert with_tier.records.cached_tokens.tolist() == [0, 0, 160, 160]
    assert with_tier.transfers == {"kv_blocks": 2 * (10 - 3)}
    again = with_tier.records.first_token_time - with_tier.records.arrival_time
    steps, link = with_tier.resolved.steptime, with_tier.resolved.equipment.moves.swap_in.block_s
    assert again[2] == pytest.approx(steps.seconds(0, 0, [(1, 160)]) + 7 * link, rel=1e-9)


def test_a_tier_of_few_blocks_keeps_the_latest() -> None:
    tier = HostTier(8, 4)
    first, second = Request("a", 16, 1, content=((1, 16),)), Request("b", 16, 1, content=((2, 16),))
    for request in (first, second):
        tier.store(request, 16, for_good=True)
    assert [tier.find(Request("c", 17, 1, content=((n, 16),)), 16) for n in (1, 2)] == [16, 16]
    tier.store(Request("d", 16, 1, content=((3, 16),)), 16, for_good=True)
    assert [tier.find(Request("c", 17, 1, content=((n, 16),)), 16) for n in (1, 2, 3)] == [0, 16, 16]
    tier.store(Request("e", 64, 1, content=((4, 64),)), 64, for_good=True)  # longer than all of it
    assert tier.find(Request("c", 65, 1, content=((4, 64),)), 64) == 32


def test_a_request_that_waits_brings_nothing_along() -> None:
    policy = ExtendedV1(num_gpu_blocks=10, block_size=4, max_num_batched_tokens=64, max_model_len=40)
    policy.equip(host_blocks=100)
    assert policy.tier is not None
    seen = Request("seen", 16, 1, content=((1, 16),))
    policy.tier.store(seen, 16, for_good=True)
    large, small = Request("large", 36, 4), Request("small", 17, 4, content=((1, 16),))
    policy.add(large, 0.0), policy.add(small, 0.0)
    batch = policy.schedule(0.0)
    assert batch is not None and [request.id for request, *_ in batch.prefills] == ["large"]
    assert small.ready == 0  # though it was looked up and found
    policy.commit(batch, [large], 1.0)
    batch = policy.schedule(1.0)
    assert batch is not None and batch.prefills == [(small, 1, 16)]
    assert batch.blocks_swapped_in == 4


def test_a_preempted_sequence_finds_its_own_output_in_host_memory() -> None:
    policy = ExtendedV1(num_gpu_blocks=8, block_size=4, max_num_batched_tokens=64, max_model_len=32)
    policy.equip(host_blocks=100)
    a, b = Request("a", 12, 20), Request("b", 12, 20)
    policy.add(a, 0.0), policy.add(b, 0.0)
    loaded, preempted = 0, 0
    for i in range(60):
        batch = policy.schedule(float(i))
        if batch is None:
            break
        loaded, preempted = loaded + batch.blocks_swapped_in, preempted + len(batch.preempted)
        policy.commit(batch, [r for r in list(policy.running) if _generated(policy, r) == 20], float(i))
    assert preempted and loaded
    assert policy.blocks_used == 0 and not policy.num_running and not policy.num_waiting


def _generated(policy: ExtendedV1, request: Request) -> int:
    return policy.decoding.generated(request) if request in policy.decoding else request.generated


def test_skipping_decides_as_stepping_does() -> None:
    trace = prompts([1, 2, 3, 1, 2, 3, 3, 2, 1] * 4, gap=0.01)
    resolved = resolve(num_gpu_blocks=40, max_model_len=200, kv_offloading_size=0.05)
    skipped, stepped = (simulate(trace, resolved, stepped=flag) for flag in (False, True))
    np.testing.assert_allclose(skipped.records.finish_time, stepped.records.finish_time, rtol=1e-9)
    assert skipped.records.cached_tokens.tolist() == stepped.records.cached_tokens.tolist()


def test_swapped_blocks_take_their_time_on_the_link() -> None:
    policy = resolve(system="vllm-0.6").scheduler()
    batch = Batch()
    batch.blocks_swapped_in, batch.blocks_swapped_out = 3, 4
    assert policy.transfer_seconds(batch) == pytest.approx(7 * BLOCK / (0.8 * 63e9))


def test_swapping_costs_the_link_and_recomputing_the_device() -> None:
    n = 40
    trace = Trace.from_columns([0.0] * n, [500] * n, [300] * n, max_tokens=[300] * n)
    swap, recompute = (
        simulate(
            trace,
            resolve(
                system="vllm-0.6", num_gpu_blocks=1000, max_model_len=2048, options={"preemption_mode": m}
            ),
        )
        for m in ("swap", "recompute")
    )
    assert swap.summary["preemptions"] > 0 < recompute.summary["preemptions"]
    assert recompute.series[0].sum("prefill_tokens") > 1.2 * swap.series[0].sum("prefill_tokens")
    moved = (
        swap.summary["preemptions"] * 2 * 600 / 16 * swap.resolved.equipment.moves.swap_in.block_s
    )  # at most
    assert 0 < swap.series[0].sum("duration_s") < recompute.series[0].sum("duration_s") + moved


def test_a_tier_without_a_cache_to_search_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="enable_prefix_caching false switches off"):
        resolve(kv_offloading_size=1.0, enable_prefix_caching=False).scheduler()
    with pytest.raises(
        ConfigurationError, match="kv_offloading_size 1: sglang has no host tier for KV; vllm has"
    ):
        resolve(kv_offloading_size=1.0, system="sglang")
