"""The engine on a real GPU: the same text as on a CPU, graphs that give what eager steps give, memory that
is found.
"""

from __future__ import annotations

import unittest

try:
    import torch
except ImportError:
    raise unittest.SkipTest("no torch") from None

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
}


def needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device")


def make_llm(device: str, dtype: str, backend: str = "auto", **settings):
    """An engine over weights that are the same on every device."""
    from engine import LLM
    from engine.config import DecoderConfig

    options = {"num_gpu_blocks": 400, "max_num_seqs": 16, "enforce_eager": True, **settings}
    llm = LLM(DecoderConfig.from_mapping(SHAPE), device=device, dtype=dtype, kernels=backend, **options)
    same_weights(llm.runner.decoder)
    return llm


def same_weights(decoder) -> None:
    """Weights drawn on the CPU, five times as wide as usual so that logits differ clearly."""
    from engine.weights import RandomWeights, load_weights

    class Wide(RandomWeights):
        def get(self, name, shape):
            numbers = super().get(name, shape)
            return numbers if name.endswith("norm.weight") else 5 * numbers

    fresh = load_weights(decoder.config, Wide(3), dtype=decoder.dtype, device=decoder.device)
    # In place: captured graphs hold the addresses.
    for old, new in zip(decoder.weights._tensors(), fresh._tensors(), strict=True):
        old.copy_(new)


def prompts(count: int = 12):
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 120, (count,), generator=draw).tolist()
    return [torch.randint(3, 2000, (n,), generator=draw).tolist() for n in lengths]


def greedy(llm, texts, count: int = 24):
    from engine import SamplingParams

    outputs = llm.generate(texts, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
    assert llm.executor.scheduler.blocks_used == 0
    return [output.outputs[0].token_ids for output in outputs]


def logits_of(llm, text):
    from engine.batch import Row, pack

    table = torch.randperm(400)[:128].int().numpy()
    row = Row(text, 0, table, num_logits=len(text))
    return llm.runner.run(pack([row], llm.settings.block_size)).cpu()


def test_fp32_text_is_that_of_the_cpu():
    needs_gpu()
    texts = prompts()
    assert greedy(make_llm("cuda", "float32"), texts) == greedy(make_llm("cpu", "float32"), texts)


def test_low_precision_errors_are_those_of_torch():
    """Against fp32 on the CPU: at most twice the error of the torch form in the same dtype."""
    needs_gpu()
    text = prompts(1)[0] * 10
    exact = logits_of(make_llm("cpu", "float32"), text)
    for dtype in ("bfloat16", "float16"):
        plain = (logits_of(make_llm("cuda", dtype, "torch"), text) - exact).abs().mean()
        ours = (logits_of(make_llm("cuda", dtype), text) - exact).abs().mean()
        assert ours <= 2 * plain, f"{dtype}: mean error {ours:.2e}, torch {plain:.2e}"


def test_preemption_and_prefix_cache_change_no_token():
    needs_gpu()
    texts = prompts(16)
    wide = greedy(make_llm("cuda", "float32"), texts, 60)
    tight = make_llm("cuda", "float32", num_gpu_blocks=40, max_num_batched_tokens=100)
    assert greedy(tight, texts, 60) == wide
    assert tight.executor.scheduler.num_preemptions > 0


def test_swapping_through_pinned_memory_changes_no_token():
    needs_gpu()
    from simulator.scheduling.vllm_v0 import VllmV0

    texts = prompts(16)
    wide = greedy(make_llm("cuda", "float32"), texts, 60)
    options = {"preemption_mode": "swap", "max_num_batched_tokens": 2048}
    tight = make_llm(
        "cuda", "float32", num_gpu_blocks=40, swap_space_blocks=200, system=VllmV0, scheduler_options=options
    )
    assert tight.runner.cache.host.is_pinned()
    assert greedy(tight, texts, 60) == wide
    assert tight.executor.scheduler.num_preemptions > 0


def test_graphs_give_what_eager_steps_give():
    """Every padded batch size up to 16; only the split of the context may differ."""
    needs_gpu()
    from engine.batch import Row, pack

    llm = make_llm("cuda", "bfloat16", enforce_eager=False)
    if llm.runner.graphs is None:
        raise unittest.SkipTest(f"no graphs: {llm.runner.decoder.kernels.describe()}")
    graphs = llm.runner.graphs
    for count in range(1, 17):
        rows = []
        for i in range(count):
            table = torch.arange(20 * i, 20 * i + 20).int().numpy()
            llm.runner.run(pack([Row(list(range(5, 55 + i)), 0, table, 0)], llm.settings.block_size))
            rows.append(Row([7 + i], 50 + i, table, 1))
        batch = pack(rows, llm.settings.block_size)
        assert graphs.size_for(batch) >= count
        replayed = llm.runner.run(batch)
        llm.runner.graphs = None
        eager = llm.runner.run(batch)
        llm.runner.graphs = graphs
        error = float((replayed - eager).norm() / eager.norm())
        assert error < 0.04, (
            f"{count} sequences: relative error {error:.3f}"
        )  # bf16 keeps 8 bits: 0.004 a rounding
    llm.runner.abandon()


def test_one_step_ahead_with_graphs():
    needs_gpu()
    texts = prompts(16)
    options = {"scheduler_options": {"async_scheduling": True}, "enforce_eager": False}
    ahead = greedy(make_llm("cuda", "bfloat16", **options), texts)
    plain = greedy(make_llm("cuda", "bfloat16"), texts)
    agreeing = sum(a == b for x, y in zip(ahead, plain) for a, b in zip(x, y))
    assert agreeing >= 0.8 * sum(len(x) for x in plain)  # bf16 and other splits: a tie may fall the other way


def test_the_cache_fills_what_memory_allows():
    needs_gpu()
    llm = make_llm("cuda", "bfloat16", num_gpu_blocks=None, gpu_memory_utilization=0.5)
    free, total = torch.cuda.mem_get_info()
    cache = llm.runner.cache.data.numel() * 2
    assert 0.3 * total < cache < 0.5 * total
    assert total - free < 0.55 * total
    greedy(llm, prompts())


def test_quantised_weights_run():
    needs_gpu()
    formats = ["int8", "int4"] + (["fp8"] if torch.cuda.get_device_capability() >= (8, 9) else [])
    for form in formats:
        assert all(len(text) == 8 for text in greedy(make_quantised(form), prompts(4), 8))


def make_quantised(form: str):
    from engine import LLM
    from engine.config import DecoderConfig

    config = DecoderConfig.from_mapping(SHAPE)
    return LLM(
        config, device="cuda", dtype="bfloat16", num_gpu_blocks=200, quantization=form, enforce_eager=True
    )


def test_timings_of_a_step_add_up():
    needs_gpu()
    llm = make_llm("cuda", "bfloat16", enforce_eager=False)
    greedy(llm, prompts())
    steps = [t for t in llm.runner.timings if not t.num_prefills]
    assert steps and all(t.seconds > 0 and min(t.prepare, t.forward, t.logits, t.sample) >= 0 for t in steps)
    assert any(t.graph for t in steps) or llm.runner.graphs is None
