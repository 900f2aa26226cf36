"""Per-request logs of real vLLM runs (casys-kaist/LLMServingSim @5daddb21, bench/examples).

A run is a folder with ``requests.csv`` and ``engine_config.json``. Arrivals are those the trace asked for; the
output length of every request was pinned; prompts share prefixes, whose block ids lie beside the folders. vLLM
measures TTFT from the moment the engine queued the request, which is when its loop came round to it, up to a step
after the arrival: a request that arrives during a step is queued at its end. So do we: the time from the end of the
step in progress would need the step; the measured queue stamp is taken against the simulated arrival, as the logs'
own comparison does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.serving.case import Case, CaseSet, reason_of
from calibrate.serving.names import find_gpu, find_model, find_serving_system
from hwprofiles import load_profile
from simulator.deployment import Deployment
from simulator.errors import InputError, SimError
from simulator.models import load_model
from simulator.workload import Runs, Trace

__all__ = ["vllm_log_cases"]

BLOCK = 16
"""Tokens per block id."""


def vllm_log_cases(path: Path) -> CaseSet:
    """The run in folder *path*, or all runs in its sub-folders."""
    folders = sorted({file.parent for file in [*path.glob("requests.csv"), *path.glob("*/requests.csv")]})
    if not folders:
        raise InputError(path, "holds no requests.csv, neither itself nor in a folder of it")
    found = CaseSet(rows=len(folders))
    for folder in folders:
        try:
            found.cases.append(_case(folder))
        except SimError as error:
            found.skipped[reason_of(error)] += 1
    return found


def _case(folder: Path) -> Case:
    config = _json(folder / "engine_config.json")
    engine = config["engine_kwargs"]
    requests = pd.read_csv(folder / "requests.csv")
    gpu, model = find_gpu(_gpu_label(folder, config)), find_model(engine["model"])
    choice = find_serving_system("vLLM", str(config["vllm_version"]))
    tp, dp = int(engine["tensor_parallel_size"]), int(engine.get("data_parallel_size") or 1)
    deployment = Deployment.of(
        model=model,
        gpu=gpu,
        system=choice.system,
        tensor_parallel_size=tp,
        data_parallel_size=dp,
        expert_parallel_size=tp * dp if engine.get("enable_expert_parallel") else 1,
        max_num_seqs=int(engine["max_num_seqs"]) * dp,
        max_num_batched_tokens=int(engine["max_num_batched_tokens"]) * dp,
        enable_prefix_caching=True,
        gpu_memory_utilization=float(engine.get("gpu_memory_utilization") or 0.9),
        num_gpu_blocks=_blocks(config),
        interconnect_bandwidth=_link_gbs(folder, gpu) if tp * dp > 1 else None,
    )
    per_request = {
        "ttft": (requests.first_token_s - requests.queued_s).to_numpy(float),
        "tpot": _tpot(requests),
    }
    return Case(
        trace=_trace(folder, requests),
        deployment=deployment,
        measured={name: float(np.nanmean(values)) for name, values in per_request.items()},
        gpu=gpu,
        system="vllm",
        dtype=load_model(model).native.weights,
        load_type="online_poisson",
        label=folder.name,
        group=(gpu, "vllm", load_model(model).name),
        traits=choice.traits,
        note=f"{choice.note}; profile {gpu}",
        per_request=per_request,
    )


def _tpot(requests: pd.DataFrame) -> Any:
    decoded = (requests.output_tokens - 1).clip(lower=1)
    seconds = (requests.last_token_s - requests.first_token_s) / decoded
    return seconds.where(requests.output_tokens > 1).to_numpy(float)


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(path, f"is not JSON: {error}") from None
    return content


def _cluster(folder: Path) -> dict[str, Any]:
    """What is recorded of the box beside the run; empty where nothing is."""
    path = folder / "llmservingsim_cluster_config.json"
    return _json(path) if path.exists() else {}


def _link_gbs(folder: Path, gpu: str) -> float | None:
    """Bandwidth between two GPUs of a box without NVLink, GB/s, where it was recorded."""
    recorded = _cluster(folder).get("link_bw")
    return None if recorded is None or load_profile(gpu).has_nvlink else float(recorded)


def _gpu_label(folder: Path, config: dict[str, Any]) -> str:
    """The device: recorded in the configuration or beside it, else the first word of the folder's name."""
    recorded = config.get("gpu") or _find(_cluster(folder), "hardware")
    return str(recorded or folder.name.split("_")[0])


def _find(node: Any, key: str) -> str | None:
    """The first text under *key* anywhere in *node*."""
    if isinstance(node, dict):
        if isinstance(node.get(key), str):
            return str(node[key])
        node = list(node.values())
    if isinstance(node, list):
        return next((found for part in node if (found := _find(part, key)) is not None), None)
    return None


def _blocks(config: dict[str, Any]) -> int | None:
    """The KV blocks that the run had, where it recorded them."""
    return _first_int(config, ("num_gpu_blocks", "num_gpu_blocks_override"))


def _first_int(node: Any, keys: tuple[str, ...]) -> int | None:
    if isinstance(node, dict):
        for key in keys:
            if isinstance(node.get(key), int):
                return int(node[key])
        node = list(node.values())
    if isinstance(node, list):
        return next((found for part in node if (found := _first_int(part, keys)) is not None), None)
    return None


def _trace(folder: Path, requests: pd.DataFrame) -> Trace:
    outputs = requests.output_tokens.to_numpy(np.int64)
    arrivals = requests.dataset_arrival_s.to_numpy(float)
    return Trace.from_columns(
        arrivals,
        requests.input_tokens.to_numpy(np.int64),
        outputs,
        max_tokens=outputs,
        content=_content(folder, requests),
    )


def _content(folder: Path, requests: pd.DataFrame) -> Runs | None:
    """Runs of 16-token blocks, equal ids for equal prefixes, from the file whose prompts have these lengths."""
    full = requests.input_tokens.to_numpy(np.int64) // BLOCK
    for path in sorted(folder.parent.glob("prefix_blocks_*.jsonl")):
        blocks = _read_blocks(path)
        prompts = [blocks.get(int(i), []) for i in requests.idx]
        if np.array_equal([len(prompt) for prompt in prompts], full):
            offsets = np.concatenate([[0], np.cumsum(full)])
            return Runs.of_blocks(
                offsets, np.array([b for prompt in prompts for b in prompt], np.int64), BLOCK
            )
    return None


def _read_blocks(path: Path) -> dict[int, list[int]]:
    with path.open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return {int(entry["idx"]): entry["block_ids"] for entry in entries}
