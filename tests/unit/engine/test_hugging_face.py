"""Greedy tokens and logits are those of Hugging Face transformers, whatever the scheduler does."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, SamplingParams  # noqa: E402
from engine.batch import Row, pack  # noqa: E402

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
