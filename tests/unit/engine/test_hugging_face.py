"""Greedy tokens and logits are those of Hugging Face transformers, whatever the scheduler does."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, SamplingParams  # noqa: E402
from engine.batch import Row, pack  # noqa: E402
from engine.pages import OwnPages  # noqa: E402

FAMILIES = ["llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"]


def prompts_of(count: int, seed: int, low: int = 3, high: int = 40, shared: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    head = [rng.randrange(3, 300) for _ in range(shared)]
    return [head + [rng.randrange(3, 300) for _ in range(rng.randint(low, high))] for _ in range(count)]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens)


def check(llm: LLM, model: Any, prompts: list[list[int]], max_tokens: int = 24) -> list[Any]:
    outputs = llm.generate(prompts, greedy(max_tokens))
    for prompt, output in zip(prompts, outputs):
        assert output.outputs[0].token_ids == model.greedy(prompt, max_tokens)
    assert llm.executor.scheduler.blocks_used == 0
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_prompt(tiny: Any, family: str) -> None:
    model = tiny(family)
    llm = LLM(model.path, num_gpu_blocks=16, block_size=8)
    prompt = prompts_of(1, seed=1, low=50, high=50)[0]
    table = torch.arange(3, 10, dtype=torch.int32).numpy()
    row = Row(prompt, 0, table, num_logits=len(prompt))
    ours = llm.runner.run(pack([row], 8))
    torch.testing.assert_close(ours, model.logits(prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_with_chunked_prefill_and_prefix_cache(tiny: Any, family: str) -> None:
    model = tiny(family)
    llm = LLM(model.path, num_gpu_blocks=200, block_size=4, max_num_batched_tokens=17, max_num_seqs=5)
    prompts = prompts_of(8, seed=2, shared=19)
    check(llm, model, prompts)
    assert llm.executor.stats().prefix_hits > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_with_preemption(tiny: Any, family: str) -> None:
    model = tiny(family)
    llm = LLM(model.path, num_gpu_blocks=30, block_size=4, max_num_batched_tokens=40, max_num_seqs=8)
    check(llm, model, prompts_of(8, seed=3), max_tokens=40)
    assert llm.executor.scheduler.num_preemptions > 0


@pytest.mark.parametrize("prefix", [False, True])
def test_greedy_text_one_step_ahead(tiny: Any, prefix: bool) -> None:
    model = tiny("llama")
    options = {"async_scheduling": True, "enable_prefix_caching": prefix}
    llm = LLM(
        model.path,
        num_gpu_blocks=30,
        block_size=4,
        max_num_batched_tokens=40,
        max_num_seqs=8,
        scheduler_options=options,
    )
    check(llm, model, prompts_of(12, seed=4, shared=9), max_tokens=40)
    assert llm.executor.scheduler.num_preemptions > 0


OTHER_POLICIES = {
    "vllm-0.2": ("simulator.scheduling.vllm_027:Vllm027", {}),
    "vllm-0.6": ("simulator.scheduling.vllm_v0:VllmV0", {}),
    "vllm-0.6 chunked": (
        "simulator.scheduling.vllm_v0:VllmV0",
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 24},
    ),
    "vllm-0.6 cached": (
        "simulator.scheduling.vllm_v0:VllmV0",
        {"enable_prefix_caching": True, "track_ids": True},
    ),
    "vllm-0.6 cached in pages of the engine": (
        "simulator.scheduling.vllm_v0:VllmV0",
        # It shares blocks in the very step that computes them, which pages do not: they need some slack.
        {"enable_prefix_caching": True, "num_gpu_blocks": 30},
    ),
    "vllm-0.6 swapping": ("simulator.scheduling.vllm_v0:VllmV0", {"preemption_mode": "swap"}),
    "vllm-0.6 multi-step": ("simulator.scheduling.vllm_v0:VllmV0", {"num_scheduler_steps": 4}),
}


def policy(name: str) -> Any:
    module, cls = OTHER_POLICIES[name][0].split(":")
    return getattr(importlib.import_module(module), cls)


@pytest.mark.parametrize("name", OTHER_POLICIES)
def test_greedy_text_under_other_policies(tiny: Any, name: str) -> None:
    model = tiny("llama")
    llm = LLM(
        model.path,
        system=policy(name),
        scheduler_options={"max_num_batched_tokens": 512, **OTHER_POLICIES[name][1]},
        num_gpu_blocks=60 if "pages" in name else 30,
        swap_space_blocks=64,
        block_size=4,
        max_num_seqs=8,
    )
    check(llm, model, prompts_of(8, seed=5, shared=8, high=25), max_tokens=30)
    assert llm.executor.scheduler.num_preemptions > 0
    check_no_page_is_held(llm)


def check_no_page_is_held(llm: LLM) -> None:
    pages = llm.executor.pages
    if isinstance(pages, OwnPages):
        assert pages.num_free == llm.runner.cache.num_blocks
        assert pages.num_host_free == llm.runner.cache.num_host_blocks


@pytest.mark.parametrize("name", ["vllm-0.2", "vllm-0.6", "v1"])
def test_parallel_samples_are_those_of_separate_requests(tiny: Any, name: str) -> None:
    """Copy-on-write, swapping of groups and prefix caching change nothing: seed and prompt alone decide a
    sample.
    """
    model = tiny("qwen3")
    options = (
        {} if name == "v1" else {"system": policy(name), "scheduler_options": {"max_num_batched_tokens": 512}}
    )
    sizes = {"block_size": 4, "max_num_seqs": 8, "swap_space_blocks": 80}
    prompts = prompts_of(5, seed=6, high=30)
    params = SamplingParams(n=3, temperature=0.9, top_k=50, seed=11, max_tokens=20, ignore_eos=True)
    small = LLM(model.path, num_gpu_blocks=36, **sizes, **options)
    large = LLM(model.path, num_gpu_blocks=400, block_size=4, max_num_seqs=64)
    crowded = small.generate(prompts, params)
    assert small.executor.scheduler.num_preemptions > 0
    check_no_page_is_held(small)
    for prompt, output in zip(prompts, crowded):
        assert len(output.outputs) == 3
        [alone] = large.generate([prompt], params)
        assert [o.token_ids for o in output.outputs] == [o.token_ids for o in alone.outputs]
        assert len({tuple(o.token_ids) for o in output.outputs}) == 3
