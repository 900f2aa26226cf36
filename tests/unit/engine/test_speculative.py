"""Speculation changes how fast tokens come, and nothing about which."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from scipy import stats  # noqa: E402

from engine import LLM, SamplingParams  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.drafting import Draft, accept  # noqa: E402


def prompts_of(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 40) for _ in range(rng.randint(6, 30))] * 2 for _ in range(count)]


@pytest.mark.parametrize("draft", ["ngram", "qwen3", "llama"])
@pytest.mark.parametrize("blocks", [40, 300])
@pytest.mark.parametrize("ahead", [False, True])
def test_greedy_text_is_still_that_of_transformers(tiny: Any, draft: str, blocks: int, ahead: bool) -> None:
    model = tiny("llama")
    llm = LLM(
        model.path,
        num_gpu_blocks=blocks,
        block_size=4,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        num_speculative_tokens=3,
        draft_model=None if draft == "ngram" else tiny(draft).path,
        scheduler_options={"async_scheduling": ahead},
    )
    prompts = prompts_of(7, seed=9)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=30))
    for prompt, output in zip(prompts, outputs):
        assert output.outputs[0].token_ids == model.greedy(prompt, 30)
    executor: Any = llm.executor
    assert executor.num_drafted > 0
    if draft == "llama":  # the model itself: every guess is right, but for what the end of a text cuts off
        assert executor.num_accepted == executor.num_drafted
    if blocks == 40:
        assert executor.scheduler.num_preemptions > 0
    assert executor.scheduler.blocks_used == 0
    assert len(executor._scratch) == llm.runner.cache.num_scratch


@pytest.mark.parametrize("certain", [False, True])
def test_accepted_tokens_have_the_models_distribution(certain: bool) -> None:
    """20,000 drafts of one token against a chi-squared test at the level 0.001: theorem 1 of Leviathan et
    al.
    """
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(2, 12, generator=generator, dtype=torch.float64).softmax(-1)
    q = (2 * torch.randn(12, generator=generator, dtype=torch.float64)).softmax(-1)
    stream = random.Random(5)
    firsts: Counter[int] = Counter()
    for _ in range(20_000):
        token = 4 if certain else stream.choices(range(12), q.tolist())[0]
        draft = Draft([token], None if certain else q[None])
        firsts[accept(draft, p, stream)[0]] += 1
    observed = [firsts[i] for i in range(12)]
    assert stats.chisquare(observed, (p[0] * 20_000).tolist()).pvalue > 0.001


@pytest.mark.parametrize("draft", [False, True])
def test_sampled_text_keeps_its_distribution_through_the_engine(draft: bool) -> None:
    """Second and third token of 2,000 samples, with speculation and without."""
    config = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    model = DecoderConfig.from_mapping(config)
    small = DecoderConfig.from_mapping({**config, "hidden_size": 8}) if draft else None
    params = SamplingParams(n=250, temperature=0.02, max_tokens=4, ignore_eos=True)
    counts = []
    for speculative in (0, 2):
        llm = LLM(
            model,
            num_gpu_blocks=2000,
            block_size=4,
            max_num_seqs=250,
            num_speculative_tokens=speculative,
            draft_model=small if speculative else None,
        )
        outputs = [llm.generate([[1, 2, 1, 2, 1]], params)[0] for _ in range(8)]
        pairs = Counter(tuple(o.token_ids[1:3]) for output in outputs for o in output.outputs)
        counts.append([pairs[a, b] for a in range(8) for b in range(8)])
        if speculative:
            assert 0 < llm.executor.num_accepted < llm.executor.num_drafted  # type: ignore[attr-defined]
    table = [row for row in zip(*counts) if sum(row) >= 10]
    assert len(table) > 10
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_the_same_seed_gives_the_same_text(tiny: Any) -> None:
    options = {"num_gpu_blocks": 300, "block_size": 4, "num_speculative_tokens": 3, "max_num_seqs": 8}
    llm = LLM(tiny("llama").path, draft_model=tiny("qwen3").path, **options)
    params = SamplingParams(seed=7, max_tokens=20, ignore_eos=True)
    crowd = llm.generate(prompts_of(5, seed=1), params)
    alone = [llm.generate([prompt], params)[0] for prompt in prompts_of(5, seed=1)]
    assert [o.outputs[0].token_ids for o in crowd] == [o.outputs[0].token_ids for o in alone]
