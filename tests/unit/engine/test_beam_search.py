"""Beam search finds the beams, and the scores, that transformers' does."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, BeamSearchParams  # noqa: E402


@pytest.mark.parametrize("blocks", [24, 300])
@pytest.mark.parametrize(
    ("family", "penalty", "early"), [("llama", 1.0, False), ("qwen2", 0.0, False), ("qwen3", 2.0, True)]
)
def test_beams_are_those_of_transformers(
    tiny: Any, family: str, penalty: float, early: bool, blocks: int
) -> None:
    model = tiny(family)
    llm = LLM(model.path, num_gpu_blocks=blocks, block_size=4, max_num_seqs=8)
    rng = random.Random(family)
    prompts = [[rng.randrange(3, 300) for _ in range(rng.randint(5, 20))] for _ in range(3)]
    found = llm.beam_search(prompts, BeamSearchParams(4, 12, penalty, early))
    for prompt, beams in zip(prompts, found):
        with torch.inference_mode():
            out = model.reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                num_beams=4,
                num_return_sequences=4,
                max_new_tokens=12,
                length_penalty=penalty,
                early_stopping=early,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
        theirs = [_untilend(row[len(prompt) :].tolist()) for row in out.sequences]
        assert [list(beam.tokens) for beam in beams] == theirs
        assert [beam.score for beam in beams] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)
    assert llm.executor.scheduler.blocks_used == 0


def _untilend(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
