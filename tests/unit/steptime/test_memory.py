"""The KV budget: conservation, the systems' rules, a recorded block count, and models that do not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import load_profile
from simulator.deployment import Deployment
from simulator.errors import CapacityError, ConfigurationError, UnknownNameError
from simulator.memory import MEMORY_RULES, kv_budget, memory_rule
from simulator.memory import weight_bytes_per_gpu as weights
from simulator.models import Precision, load_model
from simulator.steptime import Parallelism

H100 = load_profile("h100")
LLAMA = load_model("llama-3.1-8b")


@given(
    st.sampled_from(sorted(MEMORY_RULES)), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 16, 32, 256])
)
def test_items_and_blocks_add_up(system, tp, block_size):
    budget = kv_budget(LLAMA, H100, Parallelism(tp=tp), system, block_size=block_size)
    assert sum(budget.items.values()) + budget.unused == pytest.approx(budget.total)
    assert 0 <= budget.kv_cache - budget.num_gpu_blocks * budget.block_bytes < budget.block_bytes
    assert budget.block_bytes == block_size * 131_072 / tp
    assert budget.tokens == budget.num_gpu_blocks * block_size


def test_the_recorded_block_count_of_an_rtx_4090():
    # vLLM 0.19, Llama-3.1-8B bf16, 2048 batched tokens: 2588 blocks of 16 (LLMServingSim @5daddb2)
    budget = kv_budget(
        LLAMA,
        load_profile("rtx-4090"),
        system_rule="vllm-0.19",
        max_num_batched_tokens=2048,
        max_num_seqs=128,
    )
    assert budget.num_gpu_blocks == pytest.approx(2588, rel=0.06)


def test_utilization_is_a_share_of_the_total_for_vllm_and_of_the_rest_for_tensorrt_llm():
    low, high = (kv_budget(LLAMA, H100, gpu_memory_utilization=u).kv_cache for u in (0.8, 0.9))
    assert high - low == pytest.approx(0.1 * H100.memory_bytes)
    low, high = (kv_budget(LLAMA, H100, None, "trtllm", u).kv_cache for u in (0.8, 0.9))
    assert high / low == pytest.approx(9 / 8)


def test_fp8_keys_and_values_take_half():
    full, half = (kv_budget(LLAMA, H100, precision=Precision(kv=kv)) for kv in ("bf16", "fp8"))
    assert half.num_gpu_blocks == pytest.approx(2 * full.num_gpu_blocks, abs=1)


@pytest.mark.parametrize(
    ("name", "fraction"),
    [("vllm", 0.92), ("vllm-0.33", 0.92), ("vllm-0.19", 0.9), ("vllm-0.11.2", 0.9), ("vllm-v0", 0.9)],
)
def test_the_default_of_vllm_changed(name, fraction):
    assert memory_rule(name)[1].fraction == fraction


def test_sglang_fraction_of_an_80_gb_gpu():
    # 512 + 1.5·8192 + 2·256 + 1024/8 MiB of 80 GB: 0.83 to 0.88 in published server arguments
    assert 0.82 < kv_budget(LLAMA, H100, None, "sglang").rule.fraction < 0.89


@given(st.sampled_from(["llama-3.1-70b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-2-27b"]))
def test_shards_of_weights_cover_the_model(name):
    model = load_model(name)
    whole = weights(model, model.native, Parallelism())
    assert whole == pytest.approx(model.weight_bytes(), rel=1e-3)
    for tp in (2, 4, 8):
        part = weights(model, model.native, Parallelism(tp=tp))
        assert whole / tp <= part <= 1.15 * whole / tp


def test_expert_and_pipeline_parallelism_share_the_weights():
    model = load_model("deepseek-v3")
    spread = weights(model, model.native, Parallelism(dp=16, moe_ep=16))
    assert 673e9 / 16 < spread < 673e9 / 16 + 20e9  # attention is replicated
    assert weights(LLAMA, LLAMA.native, Parallelism(pp=2)) == pytest.approx(8.03e9, rel=0.05)


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would():
    with pytest.raises(CapacityError) as error:
        kv_budget(load_model("llama-3.1-70b"), H100)
    text = str(error.value)
    for part in ("llama-3.1-70b", "141.1 GB", "84.9 GB", "h100-sxm-80gb", "tensor parallel size 2 would fit"):
        assert part in text
    assert kv_budget(load_model("llama-3.1-70b"), H100, Parallelism(tp=2)).num_gpu_blocks > 0


@pytest.mark.parametrize("utilization", [0, 1.5, -1])
def test_utilization_out_of_range(utilization):
    with pytest.raises(ConfigurationError, match="gpu_memory_utilization"):
        kv_budget(LLAMA, H100, gpu_memory_utilization=utilization)


def test_zero_blocks_and_unknown_rules():
    with pytest.raises(ConfigurationError, match="block_size 0"):
        kv_budget(LLAMA, H100, block_size=0)
    with pytest.raises(UnknownNameError):
        kv_budget(LLAMA, H100, system_rule="nothing")


def test_what_does_not_fit_names_the_stated_share() -> None:
    with pytest.raises(CapacityError, match=r"gpu_memory_utilization 0\.1, as stated"):
        Deployment.of(model="llama-3.1-8b", gpu="h100", gpu_memory_utilization=0.1).resolve()
