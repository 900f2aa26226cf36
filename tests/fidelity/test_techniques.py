"""Effects of techniques against measurements: quantised weights and KV, KV sent from prefill to decode.

Cited figures always run; the public tables where they lie beside the project.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hwprofiles import load_profile
from simulator import Deployment
from simulator.cluster import ClusterSpec
from simulator.cluster.resolve import resolve_pools
from simulator.steptime.laws import LawSet

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"public measurements are not at {DATA}")


@lru_cache
def products(file: str) -> pd.DataFrame:
    return pd.read_csv(DATA / "operators" / file)


def steps(dtype: str, gpu: str, system: str, model: str = "llama-3-8b", **more: Any) -> Any:
    return Deployment.of(model=model, gpu=gpu, system=system, dtype=dtype, **more).resolve().steptime


# Llama-3-8B, Q4_K_M over F16, 1024 tokens: decode and prompt rate (llama.cpp, XiongjieDai @aa72e0ec)
GGUF = [
    ("rtx-4090", 2.35, 0.76),
    ("a100-pcie", 2.54, 0.77),
    ("h100-pcie", 2.13, 0.75),
    ("a40", 2.62, 0.80),
    ("rtx-a6000", 2.54, 0.84),
    ("l40s", 2.62, None),
]


@pytest.mark.parametrize(("gpu", "decode", "prompt"), GGUF)
def test_four_bits_in_llama_cpp_gain_less_than_their_bytes_and_lose_on_prompts(
    gpu: str, decode: float, prompt: float | None
) -> None:
    full, four = (steps(name, gpu, "llama.cpp") for name in ("fp16", "q4_k_m"))
    gain = sum(full.segment(1, 1, 1024)) / sum(four.segment(1, 1, 1024))
    assert gain == pytest.approx(decode, rel=0.20)
    if prompt is not None:
        chunks = [[(512, 0)], [(512, 512)]]
        loss = sum(full.seconds(0, 0, c) for c in chunks) / sum(four.seconds(0, 0, c) for c in chunks)
        assert loss == pytest.approx(prompt, rel=0.15)


def test_weight_only_formats_gain_at_one_row_what_gpt_fast_measured() -> None:
    """Llama-2-7B on an A100: 104.9 tokens/s in bf16, 155.6 in int8, 196.8 in int4 (gpt-fast @32971d31)."""
    rates = [
        1 / np.mean(steps(name, "a100", "gpt-fast", "llama-2-7b").segment(1, 5, 200))
        for name in ("bf16", "int8_wo", "int4")
    ]
    assert rates[1] / rates[0] == pytest.approx(155.58 / 104.90, rel=0.08)
    assert rates[2] / rates[0] == pytest.approx(196.80 / 104.90, rel=0.08)
    assert rates == pytest.approx([104.90, 155.58, 196.80], rel=0.20)


@needs_data
@pytest.mark.parametrize("gpu", ["a100", "h200", "l40s"])
@pytest.mark.parametrize(
    ("measured", "law"), [("int4_wo", "int4_wo"), ("int8_wo", "int8_wo"), ("sq", "int8")]
)
def test_quantised_products_win_and_lose_where_they_were_measured_to(
    gpu: str, measured: str, law: str
) -> None:
    """Median gain over bf16 at each number of rows, over the shapes that both tables hold."""
    tag = {"a100": "a100_sxm", "h200": "h200_sxm", "l40s": "l40s"}[gpu]
    tables = []
    for file, dtype in (("gemm.csv", "bfloat16"), ("gemm_weight_only.csv", measured)):
        table = products(file)
        chosen = table[(table["gpu"] == tag) & (table["dtype"] == dtype)]
        tables.append(chosen.groupby(["m", "n", "k"])["latency_us"].median())
    both = pd.concat(tables, axis=1, keys=["full", "few"], join="inner").reset_index()
    laws, shape = LawSet.from_profile(load_profile(gpu)), [both[name].to_numpy(float) for name in "mnk"]
    both["measured"] = both["full"] / both["few"]
    both["ours"] = laws.gemm(*shape, "bf16") / laws.gemm(*shape, law)
    gains = both.groupby("m")[["measured", "ours"]].median()
    assert len(gains) >= 10
    off = (gains["ours"] / gains["measured"] - 1).abs()
    assert off.median() < 0.10
    clear = gains[(gains["measured"] - 1).abs() > 0.2]
    assert ((clear["measured"] > 1) == (clear["ours"] > 1)).all()
    if (gpu, measured) == ("h200", "int4_wo"):
        assert (gains.loc[16:512] < 0.95).all(axis=None)  # it loses


def test_fp8_keys_and_values_gain_less_than_their_bytes_on_hopper() -> None:
    """H200, 1 to 4 GB: 0.64 of bandwidth in fp8, 0.87 in bf16 (aiconfigurator @095f58a): 1.47 times, not twice."""
    laws = LawSet.from_profile(load_profile("h200"))
    gains = [
        laws.decode_attention(64, tokens, 32, 8, 128, "bf16")
        / laws.decode_attention(64, tokens, 32, 8, 128, "fp8")
        for tokens in (250_000, 500_000, 1_000_000)
    ]
    assert np.median(gains) == pytest.approx(2 * 0.64 / 0.87, rel=0.12)


@pytest.mark.parametrize(
    ("rows", "fp4", "fp8"),
    [(4, 13.0712, 16.3367), (8, 12.9619, 16.6294), (16, 14.1522, 17.6729), (32, 15.1056, 19.5647)],
)
def test_fp4_weights_over_fp8_on_a_b200(rows: int, fp4: float, fp8: float) -> None:
    """TPOT in ms of Llama-3.1-70B in vLLM, 1024 + 1024 tokens (InferenceX, via aiconfigurator @095f58a)."""
    context = rows * int(0.9 * (1024 + 512))
    few, many = (
        steps(name, "b200", "vllm", "llama-3.1-70b", kv_cache_dtype="fp8").seconds(rows, context)
        for name in ("nvfp4", "fp8")
    )
    assert few / many == pytest.approx(fp4 / fp8, rel=0.15)


# Qwen3-235B, one prefill and one decode replica of TP 8, RoCE 4 x 400 GbE: tokens, ms, GB/s (Mooncake)
TRANSFERS = [
    (512, 2.98, 66.18),
    (1024, 3.96, 99.47),
    (4096, 10.95, 144.05),
    (16_384, 39.14, 161.19),
    (32_768, 76.78, 164.33),
]


def test_what_prefill_sends_to_decode_is_what_was_sent() -> None:
    pool = {"deployment": {"model": "qwen3-235b-a22b", "gpu": "h200", "tensor_parallel_size": 8}}
    spec = ClusterSpec.of(
        pools={"p": {**pool, "role": "prefill"}, "d": {**pool, "role": "decode"}},
        transfer={"bandwidth": 2e11},
    )
    token = resolve_pools(spec)[0].pool.kv_bytes_per_token
    for tokens, ms, rate in TRANSFERS:
        assert token * tokens == pytest.approx(rate * 1e9 * ms * 1e-3, rel=0.03)
    start, line = 1.8e-3, 168e9  # of 200 GB/s
    for tokens, ms, _ in TRANSFERS:
        assert start + token * tokens / line == pytest.approx(ms * 1e-3, rel=0.10)
