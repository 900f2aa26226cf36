"""Published runs that differ in one thing: what it gained there, and what it gains here.

A ratio of two measurements says more about a technique than either: what both share cancels. Cited figures always run;
the public collections where they lie beside the project. Tolerances are what is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest

from calibrate.serving import predict_case, read_cases, score_cases
from calibrate.serving.case import Case, fixed_lengths
from hwprofiles import load_profile
from simulator import Deployment, simulate
from simulator.claims.parallel import README, tokens_per_second
from simulator.steptime.laws import LawSet

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"public measurements are not at {DATA}")


# Tensor parallelism


@pytest.mark.parametrize("model", sorted(README))
def test_more_gpus_speed_one_request_up_as_gpt_fast_prints(model: str) -> None:
    """Gains over the fewest GPUs within 8 %, rates within 20 % (the GPUs were limited to 330 W)."""
    stated, fewest = README[model], min(README[model])
    ours = {n: tokens_per_second(model, n) for n in stated}
    for n, rate in stated.items():
        assert ours[n] / ours[fewest] == pytest.approx(rate / stated[fewest], rel=0.08)
        assert ours[n] == pytest.approx(rate, rel=0.2)


@needs_data
@pytest.mark.parametrize(("num_gpus", "tolerance"), [(4, 0.15), (8, 0.2)])
def test_more_gpus_raise_offline_throughput_as_measured(num_gpus: int, tolerance: float) -> None:
    """TensorRT-LLM, Llama-3.1-70B on A100 and H100, two GPUs against more: median error of the ratio."""
    errors = ratio_errors(offline(), lambda case: case.deployment.tensor_parallel_size, 2, num_gpus, most=4)
    assert len(errors) >= 3
    assert np.median(np.abs(errors)) <= tolerance


@pytest.mark.parametrize(
    ("isl", "osl", "four", "eight"), [(2048, 128, 177.72, 176.16), (1000, 1000, 1209.25, 1333.62)]
)
def test_twice_the_gpus_over_pcie_buy_almost_nothing(isl: int, osl: int, four: float, eight: float) -> None:
    """Llama-3.1-70B in fp8 on L40S, tokens/s of TensorRT-LLM 0.17: rates within 15 %, the gain within 6 %."""

    def rate(gpus: int) -> float:
        deployment = Deployment.of(
            model="llama-3.1-70b",
            gpu="l40s",
            system="tensorrt-llm",
            dtype="fp8",
            kv_cache_dtype="fp8",
            tensor_parallel_size=gpus,
            options={"max_num_tokens": 8192, "enable_block_reuse": False},
        )
        return float(simulate(fixed_lengths(3000, isl, osl), deployment).summary["output_throughput"] or 0.0)

    ours = {gpus: rate(gpus) for gpus in (4, 8)}
    assert ours[4] == pytest.approx(four, rel=0.15) and ours[8] == pytest.approx(eight, rel=0.15)
    assert ours[8] / ours[4] == pytest.approx(eight / four, rel=0.06)


# Formats


@needs_data
@pytest.mark.parametrize("gpu", ["h100_sxm", "h200_sxm", "b200_sxm"])
def test_a_cache_in_fp8_halves_bytes_but_not_time(gpu: str) -> None:
    """Decode attention over 0.5 GB of bf16 KV and more: median gain of fp8 within 12 %."""
    laws = LawSet.from_profile(load_profile(gpu))
    shape = ["n_q", "n_kv", "head_dim", "batch_size", "kv_len"]
    rows = pd.read_csv(DATA / "operators" / "attn_decode.csv")
    rows = rows[rows["gpu"] == gpu]
    best = rows.groupby([*shape, "kv_dtype"])["latency_us"].min().unstack().dropna().reset_index()
    best = best[best["batch_size"] * best["kv_len"] * best["n_kv"] * best["head_dim"] * 4 > 5e8]
    assert len(best) >= 10
    measured = float(np.median(best["bfloat16"] / best["fp8"]))
    ours = float(
        np.median([_attention(laws, row, "bf16") / _attention(laws, row, "fp8") for row in best.itertuples()])
    )
    assert 1.0 < measured < 2.0
    assert ours == pytest.approx(measured, rel=0.12)


def _attention(laws: LawSet, row: object, kv: str) -> float:
    get = row.__getattribute__
    tokens = get("batch_size") * get("kv_len")
    return float(
        laws.decode_attention(get("batch_size"), tokens, get("n_q"), get("n_kv"), get("head_dim"), kv)
    )


@needs_data
def test_fp8_raises_offline_throughput_as_measured() -> None:
    """TensorRT-LLM, weights and KV in fp8 against fp16 on H100, 4 and 8 GPUs: the ratio within 30 %.

    Where the fp16 model leaves almost no room for KV (two GPUs) the ratio is that of the room, which engine limits
    that were not published decide; those rows are left out.
    """
    cases = [
        case for case in offline() if case.gpu == "h100-sxm-80gb" and case.deployment.tensor_parallel_size > 2
    ]
    errors = ratio_errors(cases, lambda case: case.dtype, "fp16", "fp8")
    assert len(errors) >= 2
    assert np.max(np.abs(errors)) <= 0.3


@needs_data
@pytest.mark.parametrize(("metric", "tolerance"), [("decode_throughput", 0.15), ("prefill_throughput", 0.06)])
def test_llama_cpps_quantisation_gains_on_outputs_and_loses_on_prompts(metric: str, tolerance: float) -> None:
    """Q4_K_M against F16 on consumer and workstation GPUs, Llama-3-8B: median error of the ratio."""
    cases = [case for case in published() if case.gpu in CONSUMER and metric in case.measured]
    errors = ratio_errors(cases, lambda case: case.dtype, "fp16", "q4_k_m")
    assert len(errors) >= 6
    assert np.median(np.abs(errors)) <= tolerance


CONSUMER = ("rtx-4090-24gb", "rtx-a6000-48gb", "a40-48gb", "l40s-48gb")


# Experts


@needs_data
def test_experts_decode_faster_than_a_dense_model_as_measured() -> None:
    """vLLM on RTX PRO 6000: TPOT of Qwen3-30B-A3B over that of Qwen3-32B within 10 %."""
    rows = score_cases(read_cases(DATA / "serving" / "vllm_logs").cases).rows
    rows = rows[rows["metric"] == "tpot"].set_index("label")
    sparse = rows[rows.index.str.contains("A3B", case=False)].iloc[0]
    dense = rows[rows.index.str.contains("32B", case=False)].iloc[0]
    measured = sparse["measured"] / dense["measured"]
    assert measured < 1
    assert sparse["predicted"] / dense["predicted"] == pytest.approx(measured, rel=0.1)


# Reading


@lru_cache(maxsize=1)
def published() -> list[Case]:
    """Rows of the published collection that the tests here compare: few, so that reading takes no long time."""
    rows = pd.read_csv(DATA / "serving" / "published.csv", dtype=str)
    offline = (
        (rows["source_key"] == "trt_maxload")
        & (rows["model"] == "Llama-3.1-70B")
        & (rows["isl"].astype(float) <= 5000)
    )
    consumer = (
        (rows["source_key"] == "llamacpp_xdai")
        & (rows["model"] == "Llama-3-8B")
        & (rows["gpu_count"].astype(float) == 1)
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "published.csv"
        rows[offline | consumer].to_csv(path, index=False)
        return read_cases(path).cases


def offline() -> list[Case]:
    """TensorRT-LLM's offline runs of Llama-3.1-70B that take it no long time to simulate."""
    return [case for case in published() if case.load_type == "offline_max_load" and len(case.trace) <= 1500]


def ratio_errors(
    cases: list[Case], knob: Callable[[Case], Hashable], before: Hashable, after: Hashable, most: int = 6
) -> list[float]:
    """Error of the ratio that turning *knob* from *before* to *after* makes, for at most *most* pairs of cases that
    differ in nothing else."""
    pairs: dict[Hashable, dict[Hashable, Case]] = {}
    for case in cases:
        pairs.setdefault(_all_but(case, knob(case)), {})[knob(case)] = case
    whole = [pair for pair in pairs.values() if before in pair and after in pair]
    errors = []
    for pair in whole[:: max(len(whole) // most, 1)][:most]:
        first, second = predict_case(pair[before]), predict_case(pair[after])
        for metric in first:
            measured = pair[after].measured[metric] / pair[before].measured[metric]
            errors.append(second[metric] / first[metric] / measured - 1)
    return errors


def _all_but(case: Case, value: Hashable) -> Hashable:
    stated = (case.gpu, case.dtype, case.deployment.model, case.deployment.tensor_parallel_size, case.traits)
    shape = (len(case.trace), int(case.trace.input_length[0]), int(case.trace.output_length[0]))
    return tuple("*" if part == value else part for part in stated), shape, tuple(case.measured)
