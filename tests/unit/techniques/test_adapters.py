"""LoRA: what adapters weigh, what they cost a step, how many may run together, what loading one takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.errors import ConfigurationError
from simulator.scheduling.adapters import AdapterSlots
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v1_extended import ExtendedV1
from simulator.steptime import step_work
from simulator.steptime.lora import adapter_bytes
from simulator.workload import Runs

LAYER = (3 * 4096 + 6144) + (4096 + 4096) + (2 * 4096 + 2 * 14336) + (14336 + 4096)
"""Inputs (once for each merged part) and outputs of the projections of a layer of Llama-3.1-8B."""


def resolve(**stated: Any) -> Any:
    return Deployment.of(**{"model": "llama-3.1-8b", "gpu": "h100", **stated}).resolve()


def requests(adapters: list[str | None], *, gap: float = 0.0, output: int = 20, **more: Any) -> Trace:
    n = len(adapters)
    return Trace.from_columns(
        [gap * i for i in range(n)], [100] * n, [output] * n, max_tokens=[output] * n, lora=adapters, **more
    )


def test_an_adapter_of_rank_16_on_all_projections_of_an_8b_has_42_million_parameters() -> None:
    model = resolve().model
    assert adapter_bytes(model, 16) == 2 * 32 * 16 * LAYER == 2 * 41_943_040
    assert adapter_bytes(model, 64) == 4 * adapter_bytes(model, 16)
    assert adapter_bytes(model, 16) / 2 < adapter_bytes(model, 16, tp=2) < adapter_bytes(model, 16)


def test_slots_come_out_of_the_cache() -> None:
    plain, four = resolve(), resolve(enable_lora=True, max_loras=4, max_lora_rank=32)
    assert four.budget.items["lora_adapters"] == 4 * 2 * 32 * 32 * LAYER
    gone = plain.budget.kv_cache - four.budget.kv_cache
    assert gone == pytest.approx(four.budget.items["lora_adapters"])


def test_a_step_reads_its_adapters_and_does_their_products() -> None:
    step = resolve(enable_lora=True, max_loras=4).steptime
    parts = [item for item in step_work(step, 8, 8000) if item.family == "lora"]
    assert sum(item.flops for item in parts) == 32 * 2 * 8 * 16 * LAYER
    weights = 4 * 2 * 32 * 16 * LAYER
    inner = 32 * 8 * 2 * 4 * 16 * (3 + 1 + 2 + 1)
    rows = 32 * 8 * (2 * (4096 * 3 + 14336) + 4 * (6144 + 4096 + 28672 + 4096))
    assert sum(item.bytes for item in parts) == weights + inner + rows
    plain = resolve().steptime
    assert (
        0 < step.seconds(1, 1000) - plain.seconds(1, 1000) < 2e-3
    )  # Punica, arXiv 2310.18547: 2 ms per token
    assert 0 < step.seconds(32, 32_000) - plain.seconds(32, 32_000) < 2e-3


def test_slots_are_refilled_least_recently_used_first_and_never_taken_from_who_runs() -> None:
    slots = AdapterSlots(2)
    assert [slots.enter(name) for name in ("a", "b", "a")] == [True, True, False]
    assert slots.admits("a") and slots.admits(None) and not slots.admits("c")
    slots.leave("b")
    assert slots.admits("c") and slots.enter("c")  # b, which nobody uses, goes
    slots.leave("a"), slots.leave("a"), slots.leave("c")
    assert [slots.enter(name) for name in ("c", "b", "c")] == [False, True, False]  # a was used longest ago
    assert slots.num_loads == 4


def test_a_request_whose_adapter_has_no_slot_is_passed_over_and_keeps_its_place() -> None:
    policy = ExtendedV1(num_gpu_blocks=1000, max_num_batched_tokens=64)
    policy.equip(max_loras=2)
    names = ["a", "b", "c", None, "a", "c", "b"]
    waiting = [Request(f"r{i}", 10, 50, adapter=name) for i, name in enumerate(names)]
    for request in waiting:
        policy.add(request, 0.0)
    batch = policy.schedule(0.0)
    assert batch is not None and [request.id for request, *_ in batch.prefills] == [
        "r0",
        "r1",
        "r3",
        "r4",
        "r6",
    ]
    assert batch.adapters_loaded == 2
    assert [request.id for request in policy.waiting] == ["r2", "r5"]
    policy.commit(batch, [waiting[1]], 1.0)
    following = policy.schedule(1.0)
    assert following is not None and not following.prefills  # r6 still uses b
    policy.commit(following, [waiting[6]], 2.0)
    last = policy.schedule(2.0)
    assert last is not None and [request.id for request, *_ in last.prefills] == ["r2", "r5"]
    assert last.adapters_loaded == 1


def test_loading_an_adapter_delays_the_step_that_needs_it() -> None:
    resolved = resolve(enable_lora=True, max_loras=1, max_lora_rank=64)
    load = resolved.equipment.adapter_load_s
    assert load == 2 * 32 * 64 * LAYER / (0.8 * 63e9)
    result = simulate(requests(["a", "a", "b"], gap=10.0), resolved)
    first, again, other = result.records.first_token_time - result.records.arrival_time
    assert first - again == pytest.approx(load, rel=1e-6)
    assert other == pytest.approx(first, rel=1e-9)


def test_one_slot_serves_one_adapter_at_a_time() -> None:
    mixed = requests(["a", "b"] * 20, output=300)
    one, two = (simulate(mixed, resolve(enable_lora=True, max_loras=n)).summary["duration"] for n in (1, 2))
    assert one > 1.7 * two
    stepped = simulate(mixed, resolve(enable_lora=True, max_loras=1), stepped=True)
    assert stepped.summary["duration"] == pytest.approx(one, rel=1e-9)


def test_the_same_words_under_another_adapter_are_other_blocks() -> None:
    content = Runs(np.arange(4), np.full(3, 7), np.full(3, 96))
    trace = requests(["a", "b", "a"], gap=5.0, content=content)
    cached = simulate(trace, resolve(enable_lora=True, max_loras=2)).records.cached_tokens
    assert cached.tolist() == [0, 0, 96]


def test_adapters_without_slots_are_refused() -> None:
    for stated, message in (
        ({"max_loras": 4}, "max_loras 4: needs enable_lora"),
        ({"max_lora_rank": 8}, "max_lora_rank 8: needs enable_lora"),
        ({"enable_lora": True, "system": "sglang"}, "adapters are not modelled for sglang; vllm has them"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            resolve(**stated)
