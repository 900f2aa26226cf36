"""A deployment as something to start: the arguments of ``vllm serve``, and a Kubernetes manifest.

Only vLLM from V1 on can be exported, and a manifest names the very release that was simulated. Nothing is guessed: a
limit that the deployment leaves open is left to the server, which chooses its own default for the device as the
simulation assumed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError
from simulator.speculation import Speculation

__all__ = ["kubernetes_manifest", "vllm_arguments"]

VALUES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "gpu_memory_utilization",
    "scheduling_policy",
    "long_prefill_token_threshold",
    "max_loras",
    "max_lora_rank",
    "kv_offloading_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
SWITCHES = (
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "async_scheduling",
    "enforce_eager",
    "enable_lora",
)
WHAT_IF = ("flash_attention", "kernel_fusion", "kv_cache", "attention")
"""Switches that no server has: they ask what an engine without a technique would do."""
QUANTISED = {"fp8": "fp8", "fp8_wo": "fp8"}
"""Weights that vLLM quantises while it loads them (``--quantization``); others need a checkpoint of their own."""
PLAIN = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DRAFTED = {"draft": "draft_model", "eagle": "eagle", "medusa": "medusa", "mtp": "mtp", "ngram": "ngram"}
"""``method`` of vLLM's ``--speculative-config`` (vllm/config/speculative.py, SpeculativeMethod)."""
PORT = 8000
SERVED = ("vllm", "vllm-0.11")
"""Systems whose flags these are: `vllm serve` of V1. Releases before it have other switches, 0.2 no such command."""


def vllm_arguments(
    deployment: Deployment, model_id: str | None = None, draft_id: str | None = None
) -> list[str]:
    """``vllm serve`` and its arguments for one replica. *model_id*: what vLLM loads, default the model's name;
    *draft_id*: what it loads to draft, default the name of the draft model.

    Raises `ConfigurationError` for a system that is not vLLM, and for what vLLM has no flag for.
    """
    if deployment.system not in SERVED:
        raise ConfigurationError(
            f"system {deployment.system}: only {' and '.join(SERVED)} can be exported as `vllm serve` arguments"
        )
    stated = deployment.model_dump(exclude_unset=True)
    for name in WHAT_IF:
        if stated.get(name) not in (None, True):
            raise ConfigurationError(
                f"{name} {str(stated[name]).lower()}: a what-if, vLLM has no flag for it"
            )
    if "num_gpu_blocks" in stated:
        stated["options"] = {**stated.get("options", {}), "num_gpu_blocks_override": stated["num_gpu_blocks"]}
    arguments = ["vllm", "serve", model_id or deployment.model]
    for name in VALUES:
        if stated.get(name) is not None and not (name.endswith("parallel_size") and stated[name] == 1):
            arguments += [_flag(name), str(stated[name])]
    if deployment.expert_parallel_size > 1:
        arguments.append("--enable-expert-parallel")
    arguments += _formats(deployment)
    if deployment.speculation is not None:
        arguments += ["--speculative-config", _speculative_config(deployment.speculation, draft_id)]
    for name in SWITCHES:
        if stated.get(name) is not None:
            arguments.append(_flag(name) if stated[name] else _flag(f"no_{name}"))
    for name, value in sorted(stated.get("options", {}).items()):
        arguments += [_flag(name), str(value)]
    return arguments


def kubernetes_manifest(
    deployment: Deployment, model_id: str | None = None, draft_id: str | None = None
) -> str:
    """A Deployment with as many replicas as *deployment* and a Service in front of them, as YAML."""
    resolved = deployment.resolve()
    name = "vllm-" + "".join(c if c.isalnum() else "-" for c in resolved.model.name.lower()).strip("-")
    labels = {"app.kubernetes.io/name": name}
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels, "annotations": _annotations(resolved)},
        "spec": {
            "replicas": deployment.num_replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(resolved, model_id, draft_id)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    return str(yaml.dump_all([workload, service], Dumper=_Plain, sort_keys=False))


class _Plain(yaml.SafeDumper):
    """Writes what is named twice twice: readers of manifests need no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def command_line(arguments: list[str]) -> str:
    """One line for a shell."""
    return shlex.join(arguments)


def _pod(resolved: Resolved, model_id: str | None, draft_id: str | None) -> dict[str, Any]:
    vendor = "amd.com/gpu" if resolved.profile.vendor == "amd" else "nvidia.com/gpu"
    release = f"vllm/vllm-openai:v{resolved.system.version}"
    image = "rocm/vllm:latest" if resolved.profile.vendor == "amd" else release
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10}
    container = {
        "name": "vllm",
        "image": image,
        "command": vllm_arguments(resolved.deployment, model_id, draft_id),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {vendor: str(resolved.parallelism.num_gpus)}},
        "readinessProbe": probe,
        "startupProbe": {**probe, "failureThreshold": 180},  # loading weights may take half an hour
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    memory = {
        "name": "shared-memory",
        "emptyDir": {"medium": "Memory"},
    }  # tensor parallel ranks talk through it
    return {"containers": [container], "volumes": [memory]}


def _annotations(resolved: Resolved) -> Mapping[str, str]:
    return {
        "servesim/deployment": resolved.title,
        "servesim/system": f"{resolved.system.name} {resolved.system.version}",
    }


def _formats(deployment: Deployment) -> list[str]:
    found = []
    if deployment.dtype in PLAIN:
        found += ["--dtype", PLAIN[deployment.dtype]]
    elif deployment.dtype in QUANTISED:
        found += ["--quantization", QUANTISED[deployment.dtype]]
    elif deployment.dtype is not None:
        raise ConfigurationError(
            f"dtype {deployment.dtype}: vLLM cannot make it while loading; it needs a checkpoint that has it"
        )
    if deployment.kv_cache_dtype is not None:
        plain = deployment.kv_cache_dtype
        found += ["--kv-cache-dtype", PLAIN.get(plain, plain)]
    return found


def _speculative_config(speculation: Speculation, draft_id: str | None) -> str:
    """JSON of ``--speculative-config``."""
    method, draft = speculation.method, draft_id or speculation.model
    if speculation.tree is not None:
        raise ConfigurationError(f"speculation: tree {speculation.tree}: vLLM checks chains only")
    if draft is None and method in ("eagle", "medusa"):
        raise ConfigurationError(
            f"speculation: {method} needs the checkpoint that drafts: name it with --draft-model-id"
        )
    config: dict[str, Any] = {"method": DRAFTED[method], "num_speculative_tokens": speculation.depth}
    if draft is not None:
        config["model"] = draft
    if speculation.draft_tensor_parallel_size is not None:
        config["draft_tensor_parallel_size"] = speculation.draft_tensor_parallel_size
    return json.dumps(config)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
