"""Published results of many systems: one number per row, rows of one configuration together make a case.

Columns are those of the collected table: source, system, version, GPU, parallelism, model, precisions, load type,
lengths, requests, metric, value, unit and scope. A static batch enters at once and is all the server may run; offline
maximum load is everything at once; an open loop sends at the row's rate; a closed loop keeps its concurrency.
Throughput per GPU is multiplied by the GPUs. What is no serving run (claims, kernels, single iterations), has no
lengths or reports tails is counted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.serving.case import Case, CaseSet, fixed_lengths, reason_of
from calibrate.serving.names import SystemChoice, find_gpu, find_model, find_precision, find_serving_system
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, SimError
from simulator.models import load_model
from simulator.workload import Trace, poisson_arrivals

__all__ = ["COLUMNS", "published_cases"]

COLUMNS = ("source_key", "system", "load_type", "metric", "value", "unit", "scope")
CONFIGURATION = [
    "source_key",
    "system",
    "version",
    "gpu",
    "gpu_count",
    "tp",
    "pp",
    "dp",
    "model",
    "weight_dtype",
    "kv_dtype",
    "load_type",
    "dataset",
    "isl",
    "osl",
    "num_requests",
    "batch_or_concurrency",
    "request_rate_qps",
]
UNITS = {"ms": 1e-3, "s": 1.0, "tok/s": 1.0, "req/s": 1.0, "req/min": 1 / 60}
METRICS = {
    "output_throughput": "throughput",
    "total_throughput": "total_throughput",
    "request_throughput": "requests",
    "decode_throughput": "decode_throughput",
    "prefill_throughput": "prefill_throughput",
    "ttft": "ttft",
    "prompt_time": "ttft",
    "tpot": "tpot",
    "itl": "itl",
    "token_time": "tpot",
    "makespan": "makespan",
    "e2e_latency": "e2e_latency",
}
Row = dict[Any, Any]
LOADS = (
    "static_batch",
    "single_stream",
    "offline_max_load",
    "online_open_loop",
    "online_poisson",
    "closed_loop",
)
LEAST_TOKENS = 8192
OPEN_LOOP_REQUESTS = 500


def published_cases(path: Path, frame: pd.DataFrame) -> CaseSet:
    """The rows of *frame* as cases; every other row is counted by reason."""
    found = CaseSet(rows=len(frame))
    usable = []
    for i, row in enumerate(frame.to_dict("records")):
        reason = _unusable(row)
        if reason:
            found.skipped[reason] += 1
        else:
            usable.append(i)
    chosen = frame.iloc[usable]
    for _, rows in chosen.groupby(CONFIGURATION, dropna=False, sort=False):
        try:
            found.cases.append(_case(rows.to_dict("records")))
        except SimError as error:
            found.skipped[reason_of(error)] += len(rows)
    return found


def _unusable(row: Row) -> str:
    """Why *row* cannot be simulated; empty if it can."""
    if row["load_type"] not in LOADS:
        return f"{row['load_type']}: not a serving run"
    if row["metric"] not in METRICS or row["unit"] not in UNITS:
        return f"metric {row['metric']}: not predicted"
    if not re.match(r"mean|total|p50|median", str(row["statistic"])):
        return f"statistic {row['statistic']}: only means, medians and totals are compared"
    if row["spec_grade"] == "C":
        return "grade C: a claim, an aggregate or hardware that is not known"
    if _number(row["isl"]) is None or (_number(row["osl"]) is None and row["metric"] != "prefill_throughput"):
        return "lengths not stated"
    if row["load_type"] == "offline_max_load" and _number(row["num_requests"]) is None:
        return "number of requests not stated"
    return ""


def _case(rows: list[Row]) -> Case:
    row = rows[0]
    gpu, model = find_gpu(str(row["gpu"])), find_model(str(row["model"]))
    choice = find_serving_system(str(row["system"]), str(row["version"]))
    dtype, spec = find_precision(str(row["weight_dtype"])), load_model(model)
    trace, batch = _trace(row, model)
    deployment = Deployment.of(
        model=model,
        gpu=gpu,
        system=choice.system,
        tensor_parallel_size=int(_number(row["tp"]) or 1),
        pipeline_parallel_size=int(_number(row["pp"]) or 1),
        data_parallel_size=int(_number(row["dp"]) or 1),
        dtype=dtype,
        kv_cache_dtype=_kv_dtype(row),
        interconnect=_interconnect(row),
        **_limits(choice, trace, batch, spec.max_position_embeddings),
    )
    return Case(
        trace=trace,
        deployment=deployment,
        measured=dict(_measured(entry, trace) for entry in rows),
        gpu=gpu,
        system=choice.family,
        dtype=dtype,
        load_type=str(row["load_type"]),
        label=f"{row['source_key']} {spec.name} {row['isl']:g}/{row['osl']:g}",
        group=(gpu, choice.family, spec.name),
        traits=choice.traits,
        note=choice.note,
    )


def _measured(row: dict[str, Any], trace: Trace) -> tuple[str, float]:
    value = float(row["value"]) * UNITS[row["unit"]]
    if row["scope"] == "per_gpu":
        value *= _number(row["gpu_count"]) or 1.0
    metric = METRICS[row["metric"]]
    if metric == "e2e_latency" and row["scope"] == "batch":
        metric = "makespan"
    return metric, value


def _interconnect(row: dict[str, Any]) -> str | None:
    """How the row says its GPUs are joined; None where it leaves that open."""
    if "NVLink pairs" in _text(row["gpu"]):
        return "nvlink-bridge"
    return "pcie" if "PCIe, not NVLink" in _text(row.get("notes")) else None


def _kv_dtype(row: dict[str, Any]) -> str | None:
    name = find_precision(str(row["kv_dtype"])) if _text(row["kv_dtype"]) else ""
    return name if name in ("fp8", "int8") else None


def _trace(row: dict[str, Any], model: str) -> tuple[Trace, int | None]:
    """The requests of a row, and how many the server may run where that is stated."""
    isl, osl = max(round(_number(row["isl"]) or 1), 1), max(round(_number(row["osl"]) or 1), 1)
    context = load_model(model).max_position_embeddings
    if isl + osl > context:
        raise ConfigurationError(f"{row['model']}: lengths beyond the model's context")
    return LOAD_TRACES[row["load_type"]](row, isl, osl)


def _static(row: dict[str, Any], isl: int, osl: int) -> tuple[Trace, int | None]:
    batch = int(_number(row["batch_or_concurrency"]) or 1)
    return fixed_lengths(batch, isl, osl), batch


def _offline(row: dict[str, Any], isl: int, osl: int) -> tuple[Trace, int | None]:
    batch = _number(row["batch_or_concurrency"])
    return fixed_lengths(int(_number(row["num_requests"]) or 1), isl, osl), None if batch is None else int(
        batch
    )


def _closed(row: dict[str, Any], isl: int, osl: int) -> tuple[Trace, int | None]:
    concurrency = int(_number(row["batch_or_concurrency"]) or 1)
    n = int(_number(row["num_requests"]) or 10 * concurrency)
    return fixed_lengths(n, isl, osl, concurrency), None


def _open(row: dict[str, Any], isl: int, osl: int) -> tuple[Trace, int | None]:
    n = int(_number(row["num_requests"]) or OPEN_LOOP_REQUESTS)
    rate = _number(row["request_rate_qps"])
    if rate is None or not np.isfinite(rate):
        return fixed_lengths(n, isl, osl), None
    arrivals = poisson_arrivals(n, rate, np.random.default_rng(0))
    outputs = np.full(n, osl)
    return Trace.from_columns(arrivals, np.full(n, isl), outputs, max_tokens=outputs), None


LOAD_TRACES: dict[str, Callable[[dict[str, Any], int, int], tuple[Trace, int | None]]] = {
    "static_batch": _static,
    "single_stream": _static,
    "offline_max_load": _offline,
    "closed_loop": _closed,
    "online_open_loop": _open,
    "online_poisson": _open,
}


def _limits(choice: SystemChoice, trace: Trace, batch: int | None, context: int) -> dict[str, Any]:
    """What a static batch implies; the system's own defaults otherwise. vLLM before V1 takes prompts whole, so that a
    step holds the model's *context*."""
    tokens = (
        LEAST_TOKENS if batch is None else max(LEAST_TOKENS, int(trace.input_length[:batch].sum()) + batch)
    )
    if choice.system == "tensorrt-llm":
        stated = {} if batch is None else {"max_batch_size": batch}
        return {"options": {"enable_block_reuse": False, "max_num_tokens": tokens, **stated}}
    if choice.system.startswith("vllm") and batch is not None:
        if choice.traits == "vllm-v0":
            tokens = max(tokens, context)
        return {"max_num_seqs": batch, "max_num_batched_tokens": tokens}
    return {}


def _number(cell: object) -> float | None:
    """The first number in a cell; infinity for ``inf``; None for an empty one."""
    text = _text(cell)
    if text.startswith("inf"):
        return float("inf")
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else None


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()
