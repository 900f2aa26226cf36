"""Each switch of a forward moves the bytes, FLOPs and launches that its formula says."""

from __future__ import annotations

from typing import Any

import pytest

from simulator import Deployment
from simulator.errors import ConfigurationError, SimError
from simulator.steptime import step_work

L, H, Q, KV, D, INTER, VOCAB = 32, 4096, 32, 8, 128, 14336, 128_256
"""Llama-3.1-8B: layers, width, query heads, KV heads, head dimension, intermediate width, vocabulary."""


def resolve(**stated: Any) -> Any:
    return Deployment.of(**{"model": "llama-3.1-8b", "gpu": "h100", **stated}).resolve()


def work(resolved: Any, *batch: Any) -> dict[str, Any]:
    return {item.name: item for item in step_work(resolved.steptime, *batch)}


def test_materialised_scores_of_a_prompt_are_written_and_read_twice() -> None:
    on, off = (
        work(resolve(flash_attention=flag), 0, 0, [(1000, 500)])["prefill_attention"]
        for flag in (True, False)
    )
    scores = Q * 1000 * 1500  # the masked half of the chunk with the rest
    repeated = 2 * (Q * D * 2) * 1500  # K and V of 32 heads
    assert off.bytes - on.bytes == L * (4 * 2 * scores + 2 * repeated)
    assert off.flops == L * 4 * D * scores
    assert on.flops == L * 4 * D * Q * (1000 * 500 + 1000 * 1001 / 2)


def test_materialised_scores_take_the_time_of_their_bytes() -> None:
    on, off = (resolve(flash_attention=flag).steptime for flag in (True, False))
    moved = 8 * Q * 32_000 + 8 * Q * D * 32_000
    extra = L * (on.laws.elementwise(moved) + 2 * on.laws.elementwise(0.0))
    assert off.seconds(32, 32_000) - on.seconds(32, 32_000) == pytest.approx(extra, rel=2e-3)
    assert off.seconds(0, 0, [(4096, 0)]) > 1.5 * on.seconds(0, 0, [(4096, 0)])


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_fused_attention_gains_about_what_was_published(gpu: str) -> None:
    """5 to 9 times standard PyTorch attention on A100 (FlashAttention-2, arXiv 2307.08691), less for short prompts."""
    on, off = (resolve(gpu=gpu, flash_attention=flag).steptime.prefill_attention for flag in (None, False))
    gains = [off([(n, 0)]) / on([(n, 0)]) for n in (512, 2048, 16_384)]
    assert gains == sorted(gains)
    assert gains[0] < 5 < gains[2] < 10


def test_materialised_scores_take_memory_with_the_square_of_the_context() -> None:
    four, two = (
        resolve(flash_attention=False, max_model_len=n, max_num_batched_tokens=n).budget.items[
            "attention_scores"
        ]
        for n in (4096, 2048)
    )
    assert four == 4 * two == 4 * Q * 4096**2  # a score and its probability, two bytes each
    with pytest.raises(SimError, match="does not fit"):
        resolve(flash_attention=False, max_model_len=131_072)
    assert "max_model_len: 8192 (vllm)" in resolve(flash_attention=False).chosen


def test_unfused_kernels_move_what_pytorch_moves() -> None:
    fused, unfused = (work(resolve(kernel_fusion=flag), 1, 100) for flag in (True, False))
    assert fused["norm"].bytes == L * 2 * 8 * H
    assert unfused["norm"].bytes == pytest.approx(L * 2 * 42 * H)  # 36 for the norm, 6 for the residual
    assert unfused["rotary"].bytes == pytest.approx(L * 20 * (Q + KV) * D)
    assert unfused["activation"].bytes == pytest.approx(L * 10 * INTER)
    assert unfused["final_norm"].bytes == pytest.approx(36 * H)
    same = ("qkv_proj", "down_proj", "lm_head", "decode_attention")
    assert all(unfused[name].bytes == fused[name].bytes for name in same)


def test_without_graphs_a_small_step_waits_for_its_launches() -> None:
    graphs, eager = (resolve(enforce_eager=flag) for flag in (None, True))
    assert eager.steptime.seconds(1, 100) >= L * 262e-6 > graphs.steptime.seconds(1, 100)
    assert (
        eager.steptime.seconds(1, 100) / graphs.steptime.seconds(1, 100) < 1.65
    )  # the published gain, at its floor
    assert eager.steptime.seconds(512, 512_000) == graphs.steptime.seconds(512, 512_000)  # the device decides
    assert eager.steptime.padded(5, mixed=False) == 5 < graphs.steptime.padded(5, mixed=False) == 8
    assert eager.budget.items["graph_pool"] == 0 < graphs.budget.items["graph_pool"]


def test_eager_all_reduces_are_launched_too() -> None:
    one, two = (resolve(enforce_eager=True, tensor_parallel_size=tp).steptime for tp in (1, 2))
    assert two.seconds(1, 100) - one.seconds(1, 100) == pytest.approx(L * 2 * 20e-6, rel=0.05)


def test_unfused_eager_kernels_are_launched_one_by_one() -> None:
    fused, unfused = (resolve(enforce_eager=True, kernel_fusion=flag) for flag in (None, False))
    launches = (
        2 * 7 + 9 + 1
    )  # a norm with its residual, rotary, SwiGLU: 8, 10 and 2 kernels instead of one each
    gap = unfused.steptime.traits.eager_layer_s - fused.steptime.traits.eager_layer_s
    assert gap == pytest.approx(launches * fused.profile.host.launch_s)


def test_recomputing_a_step_is_the_prefill_of_everything_before_it() -> None:
    cached, recomputed = (resolve(system="hf-static", kv_cache=flag) for flag in (None, False))
    steps = recomputed.steptime
    assert steps.seconds(4, 4 * 700) == cached.steptime.seconds(0, 0, [(700, 0)] * 4)
    flops = sum(item.flops for item in step_work(steps, 4, 4 * 700))
    assert flops == pytest.approx(4 * recomputed.model.prefill_flops(700))
    assert steps.segment(4, 2800, 3) == [steps.seconds(4, 2800 + 4 * i) for i in range(3)]
    assert sum(steps.breakdown(4, 2800).values()) == pytest.approx(steps.seconds(4, 2800))
    assert steps.floor(4, 2800) <= steps.seconds(4, 2800)
    assert steps.with_laws(steps.laws).seconds(4, 2800) == steps.seconds(4, 2800)
    assert recomputed.budget.items["kv_cache"] == recomputed.budget.block_bytes == 0
    assert any(line.startswith("no KV cache: a forward holds") for line in recomputed.provenance)


@pytest.mark.parametrize(("variant", "heads"), [("mha", 32), ("gqa-8", 8), ("gqa-4", 4), ("mqa", 1)])
def test_kv_heads_scale_the_cache_and_its_projection(variant: str, heads: int) -> None:
    resolved = resolve(attention=variant)
    assert resolved.model.kv_bytes_per_token() == L * 2 * heads * D * 2
    assert work(resolved, 8, 8000)["decode_attention"].bytes == L * 2 * heads * D * 2 * 8000
    assert work(resolved, 8, 8000)["qkv_proj"].flops == L * 2 * 8 * H * (Q + 2 * heads) * D
    assert resolved.budget.block_bytes == 16 * L * 2 * heads * D * 2


def test_sampling_costs_its_passes_over_the_logits() -> None:
    law, greedy, sorted_ = (resolve(sampling=kind) for kind in (None, "greedy", "top-p"))
    one = work(law, 64, 64_000)["sampling"].bytes
    assert work(greedy, 64, 64_000)["sampling"].bytes == pytest.approx(one / 5, rel=1e-4)
    assert work(sorted_, 64, 64_000)["sampling"].bytes == pytest.approx(one * 37 / 5, rel=1e-4)
    assert greedy.steptime.seconds(64, 64_000) < law.steptime.seconds(64, 64_000)
    assert resolve(sampling="random").steptime.seconds(64, 64_000) == law.steptime.seconds(64, 64_000)


def test_a_grammar_costs_the_host_a_mask_and_the_device_a_pass() -> None:
    plain, some = (resolve(guided_decoding=share) for share in (None, 0.5))
    assert work(some, 10, 1000)["grammar_mask"].bytes == pytest.approx(10 * 0.5 * VOCAB * (1 / 8 + 8))
    assert some.steptime.traits.per_seq_s - plain.steptime.traits.per_seq_s == pytest.approx(0.5 * 50e-6)
    slow = resolve(guided_decoding=1.0, guided_decoding_backend="gbnf").steptime
    assert slow.seconds(10, 1000) >= 10 * 6e-3  # longer than the forward, behind which a quick mask hides


def test_defaults_are_the_plain_step() -> None:
    plain = resolve().steptime
    stated = resolve(
        flash_attention=True, kernel_fusion=True, sampling="random", guided_decoding=0.0
    ).steptime
    batches = [(1, 100), (64, 64_000), (0, 0, [(512, 0)]), (32, 9000, [(2048, 100)])]
    assert [plain.seconds(*batch) for batch in batches] == [stated.seconds(*batch) for batch in batches]
    assert type(plain) is type(stated)
    assert "techniques" not in " ".join(resolve().provenance)
    assert resolve(enforce_eager=True, sampling="greedy").provenance[-1] == (
        "techniques: enforce_eager true, sampling greedy"
    )


def test_switches_that_cannot_be_are_refused_with_the_reason() -> None:
    for stated, message in (
        ({"kv_cache": False}, "kv_cache false: vllm is built around its KV cache; hf-static can do without"),
        ({"attention": "mla"}, "attention mla: llama-3.1-8b has 8 KV heads and no latent vector"),
        ({"attention": "gqa-5"}, "gqa-5: 5 KV heads must divide the 32 query heads"),
        ({"model": "deepseek-v3", "attention": "mqa"}, "attention mqa: deepseek-v3 has latent attention"),
        ({"system": "hf-static", "enforce_eager": False}, "captures no CUDA graphs"),
        ({"guided_decoding_backend": "gbnf"}, "guided_decoding_backend gbnf: needs guided_decoding"),
        ({"guided_decoding": 2.0}, "guided_decoding: 2.0"),
        ({"sampling": "beam"}, "sampling: 'beam'"),
        ({"attention": "gqa"}, "attention: 'gqa'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            resolve(**stated)


def test_kernels_hold_with_speculation_too_and_adapters_do_not() -> None:
    stated = {"speculation": "method=ngram,tokens=3,acceptance=0.5"}
    plain, eager, scores = (
        resolve(**stated, **more).steptime
        for more in ({}, {"enforce_eager": True}, {"flash_attention": False})
    )
    assert plain.seconds(1, 100) < eager.seconds(1, 100)
    drawn = scores.with_laws(scores.laws)
    assert plain.seconds(8, 80_000) < scores.seconds(8, 80_000) == drawn.seconds(8, 80_000)
    with pytest.raises(ConfigurationError, match="kv_cache false: drafts are checked against keys"):
        resolve(system="hf-static", kv_cache=False, **stated)
    for more in ({"enable_lora": True}, {"kv_offloading_size": 1.0}):
        with pytest.raises(ConfigurationError, match="not modelled together with speculation"):
            resolve(**stated, **more)


def test_a_context_cut_for_the_scores_is_said() -> None:
    (line,) = resolve(flash_attention=False).warnings
    assert "cut to 8192" in line
    assert not resolve(flash_attention=False, max_model_len=8192).warnings
    assert not resolve().warnings
