"""A request that brings its KV with it: the decode side of prefill and decode apart."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.scheduling import Request, VllmV1
from simulator.scheduling.system import list_systems


def brought(id: str, prompt: int, max_tokens: int = 20, **more: Any) -> Request:
    request = Request(id, prompt, max_tokens, **more)
    request.ready, request.generated, request.target = prompt, 1, prompt + 1
    return request


def scheduler(**options: Any) -> VllmV1:
    limits = {"num_gpu_blocks": 10, "block_size": 4, "max_num_batched_tokens": 8, "max_model_len": 40}
    return VllmV1(**{**limits, **options}, explicit=True)


@pytest.mark.parametrize("rules", ["vllm", "vllm-0.11"])
def test_its_first_step_computes_one_token_over_all_its_kv(rules: str) -> None:
    system = next(system for system in list_systems() if system.name == rules)
    assert system.policy_class.takes_kv
    policy = scheduler(rules=system.fixed["rules"])
    request = brought("r", 15)
    policy.add(request, 0.0)
    batch: Any = policy.schedule(0.0)
    # 15 tokens would need two steps of 8; the KV takes the blocks of the prompt and the new token
    assert batch.prefills == [(request, 1, 15)] and batch.joining == [request]
    assert policy.blocks_used == 4
    policy.commit(batch, [], 0.0)
    batch = policy.schedule(0.1)
    assert batch.num_decodes == 1 and batch.decode_context == 17 and policy.blocks_used == 5


def test_it_waits_until_its_kv_has_a_place() -> None:
    policy = scheduler()
    held = Request("held", 8, 30)
    policy.add(held, 0.0)
    policy.commit(policy.schedule(0.0), [], 0.0)  # type: ignore[arg-type]
    policy.add(brought("r", 33, 4), 0.0)
    batch: Any = policy.schedule(0.1)
    assert not batch.prefills and policy.num_waiting == 1
    policy.commit(batch, [held], 0.2)
    assert policy.schedule(0.3).prefills[0][1:] == (1, 33)  # type: ignore[union-attr]


def test_a_preemption_loses_what_was_brought() -> None:
    policy = scheduler(max_num_batched_tokens=100, enable_prefix_caching=False)
    first, second = brought("a", 19, 30), brought("b", 15, 30)
    for request in (first, second):
        policy.add(request, 0.0)
    for _ in range(40):
        batch: Any = policy.schedule(0.0)
        if batch.preempted:
            break
        policy.commit(batch, [], 0.0)
    assert batch.preempted == [second]
    tokens = 15 + second.generated
    policy.commit(batch, [first], 0.0)
    again: Any = policy.schedule(0.0)
    assert again.prefills == [(second, tokens, 0)]


def test_a_prefix_it_shares_is_found_by_the_next() -> None:
    policy = scheduler(max_num_batched_tokens=100)
    request = brought("a", 12, content=((7, 12),))
    policy.add(request, 0.0)
    policy.commit(policy.schedule(0.0), [], 0.0)  # type: ignore[arg-type]
    other = Request("b", 14, 5, content=((7, 12),))
    policy.add(other, 0.0)
    batch: Any = policy.schedule(0.1)
    assert batch.prefills == [(other, 2, 12)]
