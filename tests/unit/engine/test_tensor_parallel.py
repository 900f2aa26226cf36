"""Two ranks compute what one does, whole heads and MLPs apart."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, SamplingParams  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.kernels import get_kernels  # noqa: E402
from engine.parallel import TensorParallel  # noqa: E402
from engine.safetensors import Checkpoint  # noqa: E402
from engine.weights import CheckpointWeights, load_weights  # noqa: E402
from simulator.errors import ConfigurationError  # noqa: E402


@pytest.mark.parametrize("family", ["qwen2"])
def test_two_processes_give_the_text_of_transformers(tiny: Any, family: str) -> None:
    model = tiny(family)
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 300) for _ in range(12)] for _ in range(4)]
    llm = LLM(
        model.path,
        num_gpu_blocks=14,
        block_size=4,
        max_num_batched_tokens=24,
        max_num_seqs=4,
        tensor_parallel_size=2,
    )
    try:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16))
        assert llm.executor.scheduler.num_preemptions > 0
    finally:
        llm.close()
    assert [o.outputs[0].token_ids for o in outputs] == [model.greedy(prompt, 16) for prompt in prompts]


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_parts_make_the_whole(tiny: Any, size: int) -> None:
    """With more ranks than KV heads a head is kept twice; every query head is next to its own."""
    model = tiny("mixtral")
    config = DecoderConfig.from_directory(model.path)
    source = CheckpointWeights(Checkpoint(model.path))
    parts = [
        load_weights(config, source, dtype=torch.float32, parallel=TensorParallel(r, size))
        for r in range(size)
    ]
    whole = load_weights(config, source, dtype=torch.float32)
    x, dim = torch.randn(3, config.hidden_size), config.head_dim
    matmul = get_kernels("cpu").matmul
    q, kv = config.num_heads * dim, config.num_kv_heads * dim
    full = matmul(x, whole.layers[0].qkv.weight)
    for rank, part in enumerate(parts):
        mine = matmul(x, part.layers[0].qkv.weight)
        heads = q // size
        torch.testing.assert_close(mine[:, :heads], full[:, rank * heads : (rank + 1) * heads])
        first = rank * config.num_kv_heads // size
        count = max(1, config.num_kv_heads // size) * dim
        torch.testing.assert_close(
            mine[:, heads : heads + count], full[:, q + first * dim : q + first * dim + count]
        )
        torch.testing.assert_close(
            mine[:, heads + count :], full[:, q + kv + first * dim : q + kv + first * dim + count]
        )
    y = torch.randn(3, config.intermediate_size)
    total = sum(matmul(c, p.layers[0].experts[1][1].weight) for c, p in zip(y.chunk(size, -1), parts))
    torch.testing.assert_close(total, matmul(y, whole.layers[0].experts[1][1].weight))


def test_heads_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="tensor_parallel_size 3 does not divide num_attention_heads 4"
    ):
        TensorParallel(0, 3).check(4, 2, 96)
