"""The time of a step: agreement of its two evaluations, hand-worked cases, and laws of physics."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import load_profile
from simulator.models import Precision, load_model
from simulator.steptime import HostTraits, Parallelism, StepTime, load_traits
from simulator.steptime.laws import LawSet

spec = importlib.util.spec_from_file_location("steptime_devices", Path(__file__).with_name("devices.py"))
devices = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = devices
spec.loader.exec_module(devices)

NAMES = ["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-2-9b", "gpt-j-6b"]
STEPS = {
    (name, tp): StepTime(
        load_model(name), devices.Efficient(devices.ideal()), Parallelism(tp=tp), load_traits("vllm")
    )
    for name in NAMES
    for tp in (1, 4)
}
PREFILLS = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 100_000)), max_size=4)
step_times = st.sampled_from(list(STEPS.values()))
quick = settings(max_examples=60, deadline=None)


def batch_context(num_decodes, mean):
    return max(num_decodes, int(num_decodes * mean))


@quick
@given(step_times, st.just(1) | st.integers(1, 1024), st.floats(1, 30_000), st.integers(1, 300))
def test_a_segment_is_its_steps(step, num_decodes, mean, n):
    context = batch_context(num_decodes, mean)
    stepped = [step.seconds(num_decodes, context + i * num_decodes) for i in range(n)]
    assert list(step.segment(num_decodes, context, n)) == stepped


@quick
@given(step_times, st.integers(0, 1024), st.floats(1, 30_000), PREFILLS)
def test_no_step_is_faster_than_peak_rates_allow(step, num_decodes, mean, prefills):
    if not num_decodes and not prefills:
        return
    context = batch_context(num_decodes, mean)
    laws = StepTime(step.model, devices.fast(), step.parallelism, HostTraits(layer_overhead_s=0.0))
    floor = step.floor(num_decodes, context, prefills)
    assert step.seconds(num_decodes, context, prefills) >= floor > 0
    assert laws.seconds(num_decodes, context, prefills) >= floor * (1 - 1e-12)


@quick
@given(step_times, st.integers(1, 512), st.floats(1, 30_000))
def test_the_floor_is_weights_and_kv_over_bandwidth(step, num_decodes, mean):
    """Independent of the code: a decode step of a dense model reads every weight and all KV once."""
    model, tp = step.model, step.parallelism.tp
    if model.is_moe or any(layer.window for layer in model.layers):
        return
    context = batch_context(num_decodes, mean)
    weights = 2 * (model.total_parameters - model.parameters_by_part()["embedding"]) / tp
    kv = context * model.kv_bytes_per_token("bf16", tp)
    slack = 1e-3 if not model.tied_embeddings else 0.1
    assert step.floor(num_decodes, context) >= (weights + kv) / 3.35e12 * (1 - slack)


@quick
@given(st.sampled_from(NAMES), st.integers(1, 512), st.floats(1, 30_000), PREFILLS)
def test_twice_the_device_takes_half_the_time(name, num_decodes, mean, prefills):
    model, traits = load_model(name), HostTraits(layer_overhead_s=0.0)
    one, two = (
        StepTime(model, devices.ideal(scale), Parallelism(tp=2 if name != "gpt-j-6b" else 1), traits)
        for scale in (1.0, 2.0)
    )
    context = batch_context(num_decodes, mean)
    assert one.seconds(num_decodes, context, prefills) == pytest.approx(
        2 * two.seconds(num_decodes, context, prefills), rel=1e-12
    )


@quick
@given(step_times, st.integers(1, 511), st.floats(1, 20_000), PREFILLS)
def test_more_work_takes_no_less_time(step, num_decodes, mean, prefills):
    context = batch_context(num_decodes, mean)
    time = step.seconds(num_decodes, context, prefills)
    assert step.seconds(num_decodes + 1, context + 1, prefills) >= time * (1 - 1e-12)
    assert step.seconds(num_decodes, context + 1000, prefills) >= time
    longer = [*prefills, (64, 0)]
    assert step.seconds(num_decodes, context, longer) >= time


@quick
@given(step_times, st.integers(0, 300), st.floats(1, 30_000), PREFILLS)
def test_the_breakdown_adds_up(step, num_decodes, mean, prefills):
    if not num_decodes and not prefills:
        return
    context = batch_context(num_decodes, mean)
    parts = step.breakdown(num_decodes, context, prefills)
    assert sum(parts.values()) == pytest.approx(step.seconds(num_decodes, context, prefills), rel=1e-9)
    assert min(parts.values()) >= -1e-12


FITTED = {
    (gpu, name): StepTime(load_model(name), LawSet.from_profile(load_profile(gpu)), traits=HostTraits())
    for gpu in ("h100", "a100", "l40s")
    for name in ("llama-3.1-8b", "gemma-2-9b")
}


@quick
@given(st.sampled_from(list(FITTED)), st.integers(1, 1024), st.floats(1, 100_000))
def test_the_decode_table_reads_as_the_fitted_law(key, num_decodes, mean):
    step = FITTED[key]
    context = batch_context(num_decodes, mean)
    exact = sum(
        layer.count
        * float(
            step.laws.decode_attention(
                num_decodes,
                float(min(context, num_decodes * (layer.window or context))),
                *layer.attention.decode_heads,
                "bf16",
            )
        )
        for layer in step.model.layers
    )
    assert step.breakdown(num_decodes, context)["decode_attention"] == pytest.approx(exact, rel=0.02)


@quick
@given(st.sampled_from(["h100", "a100", "l40s"]), st.integers(1, 20_000), st.integers(0, 200_000))
def test_the_prefill_table_reads_as_the_fitted_law(gpu, chunk, context):
    step = FITTED[gpu, "llama-3.1-8b"]
    exact = 32 * step.laws.prefill_attention(float(chunk), float(context), 32, 8, 128, "bf16")
    table = step.breakdown(0, 0, [(chunk, context)])["prefill_attention"]
    assert table == pytest.approx(float(exact), rel=0.02)


def test_a_decode_step_worked_out_by_hand():
    # 8.03 B parameters less the embedding, 16 bits, and 32 contexts of 1000 tokens of 128 KiB, at 3.35 TB/s
    step = StepTime(load_model("llama-3.1-8b"), devices.ideal(), traits=HostTraits(layer_overhead_s=0.0))
    weights, kv = 2 * (8_030_261_248 - 128_256 * 4096), 32_000 * 131_072
    assert step.seconds(32, 32_000) == pytest.approx((weights + kv) / 3.35e12, rel=0.02)


def test_a_long_prefill_is_bound_by_flops():
    model = load_model("llama-3.1-8b")
    step = StepTime(model, devices.ideal(), traits=HostTraits(layer_overhead_s=0.0))
    assert step.seconds(0, 0, [(4096, 0)]) == pytest.approx(model.prefill_flops(4096) / 989e12, rel=0.04)


def test_a_batch_is_padded_to_the_next_graph_and_not_beyond_the_largest():
    step = STEPS["llama-3.1-8b", 1]
    gemm = [step.breakdown(n, 1000 * n)["gemm"] for n in (17, 24, 25, 32, 512, 513, 514)]
    assert gemm[0] == gemm[1] < gemm[2] == gemm[3]
    assert gemm[4] < gemm[5] < gemm[6]


def test_asynchronous_scheduling_hides_the_shorter_of_host_and_device():
    model, laws = load_model("llama-3.2-1b"), devices.ideal()
    device = StepTime(model, laws, traits=HostTraits()).seconds(8, 800)
    for host in (device / 2, device * 3):
        serial = StepTime(model, laws, traits=HostTraits(per_step_s=host)).seconds(8, 800)
        hidden = StepTime(model, laws, traits=HostTraits(per_step_s=host, overlap=True)).seconds(8, 800)
        assert serial == pytest.approx(device + host)
        assert hidden == pytest.approx(max(device, host))


def test_an_eager_step_waits_for_its_launches():
    model = load_model("llama-3.1-8b")
    eager = StepTime(model, devices.ideal(), traits=HostTraits(eager_layer_s=1e-3))
    assert eager.seconds(1, 10) == pytest.approx(32e-3)
    captured = StepTime(model, devices.ideal(), traits=HostTraits(eager_layer_s=1e-3, graph_sizes=(1,)))
    assert captured.seconds(1, 10) < 6e-3


def test_mixed_attention_costs_more_than_its_parts():
    model, laws = load_model("llama-3.1-8b"), devices.ideal()
    sum_, fused = (
        StepTime(model, laws, traits=HostTraits(mixed_attention_factor=factor)).breakdown(
            16, 160_000, [(512, 9000)]
        )
        for factor in (1.0, 1.3)
    )
    for part in ("decode_attention", "prefill_attention"):
        assert fused[part] == pytest.approx(1.3 * sum_[part])


def test_chunks_of_one_launch_pay_its_start_once():
    step = StepTime(load_model("llama-3.1-8b"), devices.Efficient(devices.ideal(), start=50e-6))
    one = step.breakdown(0, 0, [(100, 0)])["prefill_attention"]
    two = step.breakdown(0, 0, [(100, 0), (100, 0)])["prefill_attention"]
    assert one < two < one + 32 * 25e-6


def test_fp8_halves_weights_and_kv():
    model = load_model("llama-3.1-70b")
    full, half = (
        StepTime(model, devices.ideal(), Parallelism(tp=4), HostTraits(layer_overhead_s=0.0), precision)
        for precision in (Precision("bf16"), Precision("fp8", kv="fp8"))
    )
    parts = zip(full.breakdown(8, 80_000).items(), half.breakdown(8, 80_000).values(), strict=True)
    ratios = {name: other / time for (name, time), other in parts if time > 0}
    assert ratios["gemm"] == pytest.approx(0.5, rel=0.01)
    assert ratios["decode_attention"] == pytest.approx(0.5)
    assert ratios["collective"] == 1


def test_windows_bound_what_attention_reads():
    model = load_model("gemma-3-27b")  # 52 of 62 layers see 1024 tokens
    step = StepTime(model, devices.ideal(), traits=HostTraits())
    short, long = (step.breakdown(1, n)["decode_attention"] for n in (1024, 102_400))
    assert long / short == pytest.approx((52 + 10 * 100) / 62, rel=0.01)


def test_expert_parallel_attention_data_parallel_step():
    model = load_model("deepseek-v3")
    tensor = StepTime(model, devices.ideal(), Parallelism(tp=16), HostTraits())
    spread = StepTime(model, devices.ideal(), Parallelism(tp=1, dp=16, moe_ep=16), HostTraits())
    one, two = tensor.breakdown(256, 1_000_000), spread.breakdown(256, 1_000_000)
    # latent attention cannot be cut by heads: tensor parallelism reads the whole cache on every rank
    assert two["decode_attention"] == pytest.approx(one["decode_attention"] / 16, rel=0.02)
    assert two["moe"] == pytest.approx(one["moe"], rel=0.05)
    assert np.isfinite(spread.seconds(0, 0, [(4096, 0)] * 16))


def test_overlap_of_launches_cannot_hide_the_work():
    model, laws = load_model("llama-3.1-8b"), devices.Efficient(devices.ideal())
    step = StepTime(model, laws, traits=HostTraits(layer_overhead_s=-1.0))
    assert step.seconds(8, 8000) >= step.floor(8, 8000)
    assert step.seconds(8, 8000) < StepTime(model, laws, traits=HostTraits()).seconds(8, 8000)


def test_pipeline_stages_hand_activations_on():
    model, laws = load_model("llama-3.1-8b"), devices.ideal()
    one, two = (StepTime(model, laws, Parallelism(pp=pp), HostTraits()) for pp in (1, 2))
    extra = two.seconds(0, 0, [(1000, 0)]) - one.seconds(0, 0, [(1000, 0)])
    assert extra == pytest.approx(1000 * 4096 * 2 / 450e9, rel=1e-6)


def test_an_empty_step_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        STEPS["llama-3.1-8b", 1].seconds(0, 0)
