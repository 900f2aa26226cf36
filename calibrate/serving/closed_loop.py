"""Closed-loop measurements: vLLM, TensorRT-LLM and SGLang at fixed lengths and concurrency.

The table is aiconfigurator's ``silicon_sample.csv`` (ai-dynamo/aiconfigurator @095f58a51c). Two protocols are in
it. InferenceX submits 10 x concurrency prompts at once with ``max-concurrency``, lengths uniform in [0.8 L, L], and
starts its servers with max-num-seqs = concurrency, 8192 batched tokens, chunked prefill, asynchronous scheduling and
no prefix cache. NVIDIA's rows do not state theirs: fixed lengths, 10 x concurrency prompts and the system's own
limits are assumed; ``score_ttft`` False marks single bursts, of which all prompts are in flight at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.serving.case import Case, CaseSet, fixed_lengths, reason_of, steady_lengths, uniform_lengths
from calibrate.serving.names import SystemChoice, find_gpu, find_model, find_precision, find_serving_system
from simulator.deployment import Deployment
from simulator.errors import SimError
from simulator.models import load_model
from simulator.workload import Trace

__all__ = ["COLUMNS", "closed_loop_cases"]

COLUMNS = ("system", "backend", "model_path", "isl", "osl", "concurrency", "tp_size", "silicon_tpot_ms")
WAVES = 10
"""Prompts per unit of concurrency."""
LENGTH_RATIO = 0.8
BATCHED_TOKENS = 8192


def closed_loop_cases(path: Path, frame: pd.DataFrame) -> CaseSet:
    """The rows of *frame* as cases; every other row is counted by reason."""
    found = CaseSet(rows=len(frame))
    for row in frame.to_dict("records"):
        try:
            found.cases.append(_case(row))
        except SimError as error:
            found.skipped[reason_of(error)] += 1
    return found


def _case(row: dict[Any, Any]) -> Case:
    gpu, model = find_gpu(row["system"]), find_model(row["model_path"])
    choice = find_serving_system(row["backend"], _text(row.get("backend_version")))
    dtype = _dtype(model, _text(row.get("precision")))
    concurrency = int(row["concurrency"])
    spread = "uniform" in _text(row.get("lengths"))
    deployment = Deployment.of(
        model=model,
        gpu=gpu,
        system=choice.system,
        dtype=dtype,
        kv_cache_dtype=_kv_dtype(choice.family, gpu, model, dtype, spread),
        **_parallel(row, model),
        **_limits(choice, concurrency, int(row["isl"]), spread),
    )
    return Case(
        trace=_trace(row, concurrency, spread),
        deployment=deployment,
        measured=_measured(row),
        gpu=gpu,
        system=choice.family,
        dtype=dtype or load_model(model).native.weights,
        load_type="closed_loop",
        label=f"{model} tp{int(row['tp_size'])} {int(row['isl'])}/{int(row['osl'])} c{concurrency}",
        group=(gpu, choice.family, load_model(model).name),
        traits=choice.traits,
        note=choice.note,
    )


def _trace(row: dict[str, Any], concurrency: int, spread: bool) -> Trace:
    isl, osl = int(row["isl"]), int(row["osl"])
    if spread:
        seed = concurrency * 1_000_003 + isl * 101 + osl
        return uniform_lengths(WAVES * concurrency, isl, osl, LENGTH_RATIO, seed, concurrency)
    if not row.get("score_ttft", True):
        return fixed_lengths(concurrency, isl, osl, concurrency)
    return steady_lengths(WAVES, isl, osl, concurrency)


def _measured(row: dict[str, Any]) -> dict[str, float]:
    measured = {"tpot": float(row["silicon_tpot_ms"]) / 1e3}
    if row.get("score_ttft", True):
        measured["ttft"] = float(row["silicon_ttft_ms"]) / 1e3
    return measured


def _dtype(model: str, precision: str) -> str | None:
    """None where the checkpoint's own formats are meant: experts published in four bits stay so."""
    native = load_model(model).native
    if not precision or (precision == "fp4" and (native.moe or native.weights) == "mxfp4"):
        return None
    return find_precision(precision)


def _kv_dtype(family: str, gpu: str, model: str, dtype: str | None, spread: bool) -> str | None:
    """Stated for InferenceX on B200; TensorRT-LLM keeps keys and values in fp8 when the weights are quantised so."""
    native = load_model(model).native
    weights = dtype or native.moe or native.weights
    quantised = weights in ("fp8", "nvfp4", "mxfp4")
    if quantised and (family == "tensorrt-llm" or (spread and "b200" in gpu)):
        return "fp8"
    return None


def _parallel(row: dict[str, Any], model: str) -> dict[str, int]:
    tp, pp = int(row["tp_size"]), int(row.get("pp_size") or 1)
    width, experts = (_count(row.get(name)) for name in ("moe_tp_size", "moe_ep_size"))
    dp = _count(row.get("attention_dp_size"))
    if load_model(model).is_moe and _text(row.get("attention_dp_size")) == "" and tp != width * experts:
        raise SimError("attention data parallelism not stated and the experts' widths do not follow from tp")
    return {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "data_parallel_size": dp,
        "expert_parallel_size": experts if load_model(model).is_moe else 1,
    }


def _limits(choice: SystemChoice, concurrency: int, isl: int, spread: bool) -> dict[str, Any]:
    """Flags of the server; each system has its own names for them."""
    if choice.system == "sglang":
        return {"options": {"disable_radix_cache": True}}
    if choice.system == "tensorrt-llm":
        limits = {"max_batch_size": concurrency} if spread else {}
        # a whole prompt must fit beside the running batch, or it would wait until nobody decodes
        tokens = max(BATCHED_TOKENS, -(-(isl + concurrency) // 64) * 64)
        return {"options": {"enable_block_reuse": False, "max_num_tokens": tokens, **limits}}
    if not spread:
        return {"enable_prefix_caching": False}
    return {
        "enable_prefix_caching": False,
        "max_num_seqs": concurrency,
        "max_num_batched_tokens": BATCHED_TOKENS,
    }


def _count(value: object) -> int:
    """A size from a cell, 1 where it is empty or nought."""
    text = _text(value)
    return max(int(float(text)), 1) if text else 1


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()
