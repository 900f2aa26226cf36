"""Formats of weights: the names people type, their bits, and what dequantisation costs a product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment
from simulator.errors import UnknownNameError
from simulator.models import dtype
from simulator.steptime import step_work


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("awq", "int4"),
        ("gptq-int4", "int4"),
        ("AWQ-4bit", "int4"),
        ("gptq-int8", "int8_wo"),
        ("int8", "int8"),
        ("int8-weight-only", "int8_wo"),
        ("w8a16", "int8_wo"),
        ("smoothquant", "int8"),
        ("LLM.int8()", "llm_int8"),
        ("bitsandbytes", "nf4"),
        ("Q4_K_M", "q4_k_m"),
        ("gguf-q4_k_m", "q4_k_m"),
        ("IQ2_XS", "iq2_xs"),
        ("fp8", "fp8"),
        ("fp8-e4m3", "fp8"),
        ("w8a8-fp8", "fp8"),
        ("fp4", "nvfp4"),
        ("MXFP4", "mxfp4"),
        ("torch.bfloat16", "bf16"),
    ],
)
def test_what_people_type_is_understood(typed: str, name: str) -> None:
    assert dtype(typed).name == name


def test_what_is_no_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown dtype 'q4_k_x': did you mean 'q4_k"):
        dtype("q4_k_x")


def test_bits_per_weight_are_those_of_the_layouts() -> None:
    assert dtype("awq").bits == 4 + (16 + 4) / 128
    assert dtype("q4_0").bits == (32 * 4 + 16) / 32  # a 16-bit scale for 32 weights
    assert dtype("q4_1").bits == (32 * 4 + 32) / 32  # and a minimum
    assert (
        dtype("q4_k").bits == (256 * 4 + 8 * 12 + 32) / 256
    )  # 8 scales and minima of 6 bits, and two 16-bit ones
    assert dtype("q6_k").bits == (256 * 6 + 16 * 8 + 16) / 256
    assert dtype("mxfp4").bits == 4 + 8 / 32
    assert dtype("nvfp4").bits == 4 + 8 / 16
    assert dtype("nf4").bits == pytest.approx(4.127, abs=1e-3)  # QLoRA: 0.127 bits per parameter


def products(weights: str, gpu: str = "rtx-4090", rows: int = 1) -> Any:
    step = Deployment.of(model="llama-3.1-8b", gpu=gpu, dtype=weights, max_model_len=2048).resolve().steptime
    return [item for item in step_work(step, rows, rows * 100) if item.name.endswith("_proj")]


def test_fewer_bits_are_read_in_less_time_down_to_the_bytes_at_full_bandwidth() -> None:
    names = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "iq2_xs", "iq1_s")
    times = [sum(item.seconds for item in products(name)) for name in names]
    assert times == sorted(times, reverse=True)
    for name, time in zip(names, times, strict=True):
        weights = 32 * ((4096 + 2048) * 4096 + 4096**2 + 3 * 4096 * 14336)
        assert time >= dtype(name).bytes * weights / 1.008e12
        assert sum(item.bytes for item in products(name)) == pytest.approx(
            dtype(name).bytes * weights, rel=0.01
        )


def test_a_prompt_is_multiplied_in_sixteen_bits_whatever_the_weights_are_stored_in() -> None:
    full = sum(item.seconds for item in products("fp16", rows=2048))
    four = sum(item.seconds for item in products("q4_k_m", rows=2048))
    assert four == pytest.approx(1.25 * full, rel=0.10)  # and dequantised first
    assert sum(item.seconds for item in products("int4", rows=2048)) == pytest.approx(full, rel=0.10)
    assert sum(item.seconds for item in products("int8", rows=2048)) < 0.7 * full


def test_keys_and_values_in_few_bits_are_read_in_less_time_and_room() -> None:
    found = [
        Deployment.of(model="llama-3.1-8b", gpu="h100", kv_cache_dtype=name).resolve()
        for name in ("bf16", "q8_0", "fp8", "int4")
    ]
    times = [resolved.steptime.decode_attention(64, 500_000) for resolved in found]
    assert times == sorted(times, reverse=True)
    assert times[2] - times[3] == pytest.approx((8 - 4.15625) / 8 * (times[0] - times[2]), rel=1e-6)
    assert [resolved.budget.block_bytes / found[0].budget.block_bytes for resolved in found] == [
        1, 8.5 / 16, 0.5, 4.15625 / 16,
    ]  # fmt: skip


def test_splitting_off_outliers_costs_kernels_that_plain_int8_does_not_have() -> None:
    plain, split = (
        Deployment.of(model="llama-3.1-8b", gpu="a100", dtype=name).resolve().steptime
        for name in ("int8", "llm_int8")
    )
    extra = next(item for item in step_work(split, 1, 100) if item.name == "outliers")
    assert extra.bytes == 32 * (
        7 * 4096 + 12 * 6144
    )  # of the first projection: 7 bytes an input, 12 an output
    kernels = 32 * 4 * 5
    start = float(split.laws.elementwise(0.0))
    assert split.seconds(1, 100) - plain.seconds(1, 100) == pytest.approx(kernels * start, rel=0.1)


def test_weight_only_formats_win_thin_products_and_lose_wide_ones_on_an_a100() -> None:
    """TensorRT-LLM on A100 (aiconfigurator @095f58a): int4 is 1.23 times as fast at m = 1, slower for prompts."""
    laws = Deployment.of(model="llama-3.1-8b", gpu="a100").resolve().steptime.laws
    shapes = [(12288, 8192), (8192, 10240), (10240, 8192)]
    ratio = {
        m: np.median([laws.gemm(m, n, k, "bf16") / laws.gemm(m, n, k, "int4_wo") for n, k in shapes])
        for m in (1, 16, 4096)
    }
    assert ratio[1] > 1.2
    assert ratio[4096] < 1.0
