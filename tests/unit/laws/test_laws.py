"""What a law set promises: scalars and arrays agree, corrections fade, draws are stated, ranges are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import Residual, load_profile
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.steptime.law_form import Device, Grid, p_norm
from simulator.steptime.law_moe import touched_experts
from simulator.steptime.law_prefill import PrefillLaw
from simulator.steptime.laws import LawSet

H100 = LawSet.from_profile(load_profile("h100"))


@given(st.lists(st.integers(1, 20000), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_arrays_equal_scalars(values: list[int]) -> None:
    many = np.array(values, dtype=float)
    calls = [
        lambda x: H100.gemm(x, 5120, 3000, "bf16"),
        lambda x: H100.decode_attention(x, x * 77.0, 40, 8, 128, "bf16"),
        lambda x: H100.decode_attention(x, x * 77.0, 32, 8, 128, "fp8", 1000.0),
        lambda x: H100.prefill_attention(x, 100.0, 32, 8, 128, "bf16"),
        lambda x: H100.moe(x, 2048, 768, 8, 128, 1, 1, "bf16", "uniform"),
        lambda x: H100.all_reduce(x * 300.0, 4),
        lambda x: H100.elementwise(x),
        lambda x: H100.sampling(x, 128256),
        lambda x: H100.kv_write(x, 131072.0),
    ]
    for call in calls:
        assert call(many) == pytest.approx([call(float(value)) for value in values], rel=1e-12)


def test_decode_kernel_is_the_law() -> None:
    kernel = H100.decode_kernel(32, 8, 128, "bf16")
    assert kernel(64, 64000) == H100.decode_attention(64, 64000, 32, 8, 128, "bf16")
    bound = H100.bound("decode_attention", "bf16")
    arguments = [np.array([value]) for value in (64.0, 64000.0, 32.0, 8.0, 128.0, 0.0)]
    assert kernel(64, 64000) == pytest.approx(float(bound(*arguments)[0]), rel=1e-12)


def test_equal_chunks_are_one_launch() -> None:
    together = H100.prefill_attention_varlen([512] * 4, [256] * 4, 32, 8, 128, "bf16")
    assert together == pytest.approx(H100.prefill_attention(512, 256, 32, 8, 128, "bf16", 4))


def test_prefill_after_context_costs_what_it_reads() -> None:
    """The same chunk after a longer context takes longer; chunks of a prompt cost at least the whole."""
    times = [H100.prefill_attention(512, context, 32, 8, 128, "bf16") for context in (0, 4096, 32768)]
    assert times == sorted(times)
    whole = H100.prefill_attention(8192, 0, 32, 8, 128, "bf16")
    parts = sum(H100.prefill_attention(1024, start, 32, 8, 128, "bf16") for start in range(0, 8192, 1024))
    assert whole < parts < 2 * whole


def test_one_gpu_has_nothing_to_reduce() -> None:
    assert H100.all_reduce(1e6, 1) == 0
    assert H100.collective("all_gather", 1e6, 1) == 0


def test_skewed_batch_takes_longer() -> None:
    even = H100.decode_attention(32, 32000, 32, 8, 128, "bf16", 1000)
    assert H100.decode_attention(32, 32000, 32, 8, 128, "bf16", 30000) > even


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3), st.floats(1, 40))
def test_p_norm_lies_between_maximum_and_sum(a: float, b: float, p: float) -> None:
    assert max(a, b) * (1 - 1e-12) <= p_norm(a, b, p) <= (a + b) * (1 + 1e-12)


GRID = Grid(Residual(axes={"x": [0, 1, 3], "y": [0, 2]}, values=[0, 1, 2, 3, 4, 5], fade=2.0))


@given(st.floats(0, 3), st.floats(0, 2))
def test_grid_interpolates_linearly(x: float, y: float) -> None:
    """Values 2 x + y/2 below x = 1, then a gentler slope."""
    expected = (2 * x if x <= 1 else 2 + (x - 1)) + y / 2
    assert GRID(x, y) == pytest.approx(expected, abs=1e-12)
    assert GRID.plane(x, y) == pytest.approx(expected, abs=1e-12)
    assert GRID.fixed(y)(x) == pytest.approx(expected, abs=1e-12)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_grid_hands_over_without_a_jump(x: float, y: float) -> None:
    """Outside, the edge's value dies by 1/e over *fade* octaves; a small step changes it by little."""
    assert abs(GRID(x + 1e-6, y) - GRID(x, y)) < 1e-4
    beyond = max(0, -x, x - 3) + max(0, -y, y - 2)
    edge = GRID(min(max(x, 0), 3), min(max(y, 0), 2))
    assert GRID(x, y) == pytest.approx(edge * np.exp(-beyond / 2.0))


def test_routing() -> None:
    assert touched_experts(1, 8, 128, "balanced") == 8
    assert touched_experts(100, 8, 128, "balanced") == 128
    # tokens choosing 2 of 8 independently: 8 (1 - (1 - 1/4)^T)
    assert touched_experts(3, 2, 8, "uniform") == pytest.approx(8 * (1 - 0.75**3))
    few = [
        touched_experts(16, 8, 128, name)
        for name in ("power_law_1.2", "power_law_1.01", "uniform", "balanced")
    ]
    assert few == sorted(few)
    with pytest.raises(ConfigurationError, match="distribution 'zipf'"):
        touched_experts(1, 2, 8, "zipf")


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown dtype 'bf61'"):
        H100.gemm(1, 1, 1, "bf61")
    with pytest.raises(ConfigurationError, match="no law for all_reduce/bf16/smoke"):
        H100.all_reduce(1e6, 2, "smoke")


def test_spellings_of_a_dtype_are_one_law() -> None:
    assert H100.gemm(8, 4096, 4096, "bfloat16") == H100.gemm(8, 4096, 4096, "bf16")


def test_range_is_that_of_the_data() -> None:
    assert H100.in_range("gemm", "bf16", m=64, n=4096, k=4096)
    assert not H100.in_range("gemm", "bf16", m=64, n=200000, k=4096)
    assert not H100.in_range("elementwise", "bf16", moved=1e6)


def test_interval_widens_with_probability() -> None:
    narrow, wide = (H100.interval("gemm", "bf16", probability) for probability in (0.5, 0.9))
    assert wide[0] < narrow[0] < 1 < narrow[1] < wide[1]


def test_draws_repeat_and_spread_as_stated() -> None:
    """ln(drawn / law) of an unseen shape has the law's spread; two laws correlate by a half."""
    again = [H100.draw(np.random.default_rng(3)).gemm(64, 4096, 4096, "bf16") for _ in range(2)]
    assert again[0] == again[1]
    rng = np.random.default_rng(0)
    drawn = [H100.draw(rng) for _ in range(300)]
    gemm = np.log([laws.gemm(64, 8192, 8192, "bf16") for laws in drawn])
    decode = np.log([laws.decode_attention(64, 64000, 32, 8, 128, "bf16") for laws in drawn])
    assert gemm.std() > 0.5 * H100.law("gemm", "bf16").spread
    assert 0.2 < np.corrcoef(gemm, decode)[0, 1] < 0.75


def test_short_prompts_are_read_from_l2_and_long_ones_from_memory() -> None:
    device = Device(peak=1e18, bandwidth=1e12, link=1e9, num_sms=142, l2=96 * 2**20)
    coefficients = {"t0": 0.0, "ec": 1.0, "eb": 0.5, "p": 8.0, "tile": 0.0, "pack": 0.0, "cached": 0.25}
    law = PrefillLaw(coefficients, "bf16", device)
    for prompts, share in ((1, 0.25), (256, 1.0)):
        arguments = (512, 0, 32, 32, 128, prompts)
        moved = law.work(*arguments).moved
        assert (moved < device.l2 / 2) == (prompts == 1)
        assert law.smooth(*arguments) == pytest.approx(share * moved / 0.5e12, rel=0.02)
    assert law(512, 0, 32, 32, 128, 1) >= law.floor(512, 0, 32, 32, 128, 1)
