"""No operator is faster than the device allows, whatever the shape and however a law is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import DTYPES, HardwareProfile, list_profiles, load_profile
from simulator.steptime.interconnect import Interconnect
from simulator.steptime.law_gemm import gemm_bytes, gemm_flops
from simulator.steptime.law_prefill import prefill_flops
from simulator.steptime.laws import LawSet

LAWS = {name: LawSet.from_profile(load_profile(name)) for name in list_profiles()}
DRAWN = {name: laws.draw(np.random.default_rng(7)) for name, laws in LAWS.items()}
devices = st.sampled_from([*LAWS.values(), *DRAWN.values()])
sizes = st.integers(1, 65536)
SLACK = 1 - 1e-9


@given(laws=devices, m=sizes, n=sizes, k=sizes, dtype=st.sampled_from(sorted(DTYPES)))
@settings(max_examples=300, deadline=None)
def test_gemm_respects_peaks(laws: LawSet, m: int, n: int, k: int, dtype: str) -> None:
    seconds = laws.gemm(m, n, k, dtype)
    assert seconds >= SLACK * gemm_flops(m, n, k) / laws.peak_flops(dtype)
    assert seconds >= SLACK * gemm_bytes(m, n, k, dtype) / laws.bandwidth


@given(
    laws=devices,
    num_seqs=st.integers(1, 4096),
    context=st.integers(1, 131072),
    heads=st.sampled_from([(1, 1), (8, 1), (32, 8), (64, 64), (128, 2)]),
    dtype=st.sampled_from(["bf16", "fp8"]),
)
@settings(max_examples=300, deadline=None)
def test_decode_respects_bandwidth(
    laws: LawSet, num_seqs: int, context: int, heads: tuple[int, int], dtype: str
) -> None:
    n_q, n_kv = heads
    total = num_seqs * context
    moved = 2 * total * n_kv * 128 * DTYPES[dtype].weight_bytes
    seconds = laws.decode_attention(num_seqs, total, n_q, n_kv, 128, dtype)
    assert seconds >= SLACK * moved / laws.bandwidth
    assert seconds >= SLACK * 4 * n_q * 128 * total / laws.peak_flops("bf16")


@given(
    laws=devices,
    chunk=st.integers(1, 32768),
    context=st.integers(0, 131072),
    num_seqs=st.integers(1, 64),
    heads=st.sampled_from([(4, 1), (32, 8), (32, 32), (64, 8)]),
)
@settings(max_examples=300, deadline=None)
def test_prefill_respects_peak(
    laws: LawSet, chunk: int, context: int, num_seqs: int, heads: tuple[int, int]
) -> None:
    seconds = laws.prefill_attention(chunk, context, *heads, 128, "bf16", num_seqs)
    flops = num_seqs * prefill_flops(chunk, context, heads[0], 128)
    assert seconds >= SLACK * flops / laws.peak_flops("bf16")


@given(
    laws=devices,
    tokens=st.integers(1, 16384),
    distribution=st.sampled_from(["balanced", "uniform", "power_law_1.2"]),
    dtype=st.sampled_from(["bf16", "fp8"]),
)
@settings(max_examples=200, deadline=None)
def test_moe_respects_peak(laws: LawSet, tokens: int, distribution: str, dtype: str) -> None:
    seconds = laws.moe(tokens, 4096, 1536, 8, 128, 2, 1, dtype, distribution)
    assert seconds >= SLACK * 6 * tokens * 8 * 4096 * 768 / laws.peak_flops(dtype)


@given(laws=devices, message=st.floats(1, 1e9), num_gpus=st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_all_reduce_sends_every_share(laws: LawSet, message: float, num_gpus: int) -> None:
    sent = message * (num_gpus - 1) / num_gpus
    assert laws.all_reduce(message, num_gpus) >= SLACK * sent / laws.link_bandwidth


def faster(profile: HardwareProfile, factor: float) -> HardwareProfile:
    """*profile* with peaks, bandwidths and launch latencies better by *factor*."""
    sheet = profile.datasheet
    update = {
        "peak_flops": {dtype: peak * factor for dtype, peak in sheet.peak_flops.items()},
        "memory_bandwidth": sheet.memory_bandwidth * factor,
        "nvlink_bandwidth": sheet.nvlink_bandwidth and sheet.nvlink_bandwidth * factor,
        "pcie_bandwidth": sheet.pcie_bandwidth * factor,
    }
    seconds = ("t0", "t0_2", "t0_4", "t0_8", "second", "unit", "tile")
    laws = [
        law.model_copy(
            update={
                "coefficients": {k: v / factor if k in seconds else v for k, v in law.coefficients.items()}
            }
        )
        for law in profile.laws
    ]
    return profile.model_copy(update={"datasheet": sheet.model_copy(update=update), "laws": laws})


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "a10g-24gb"])
@pytest.mark.parametrize("m", [1, 100, 8192])
def test_twice_the_device_takes_half_the_time(name: str, m: int) -> None:
    """The correction of decode attention is indexed by memory time, so it is left out of this metamorphic
    test."""
    cards, boxes = (LAWS[name].profile, faster(LAWS[name].profile, 2.0)), (None, None)
    if not cards[0].has_nvlink:  # a faster card does not make its host faster
        boxes = Interconnect("pcie", 16e9), Interconnect("pcie", 32e9)
    slow, fast = (LawSet.from_profile(card, box) for card, box in zip(cards, boxes, strict=True))
    assert fast.gemm(m, 4096, 4096, "bf16") == pytest.approx(slow.gemm(m, 4096, 4096, "bf16") / 2)
    prefill = (m, 1000, 32, 8, 128, "bf16")
    assert fast.prefill_attention(*prefill) == pytest.approx(slow.prefill_attention(*prefill) / 2)
    assert fast.all_reduce(m * 8192.0, 4) == pytest.approx(slow.all_reduce(m * 8192.0, 4) / 2)
