"""What a deployment states, as options of a command: the same for `sim run` and `sim serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.technique_options import OPTIONS as TECHNIQUES
from simulator.cli.technique_options import with_options

if TYPE_CHECKING:
    from simulator.deployment import Deployment

__all__ = ["as_pair", "read_deployment", "with_deployment"]

WHERE, LIMITS = "Deployment", "Limits"
SIMULATED = ("num_replicas", "router", "request_overhead_ms")
"""What only a simulation can have: many replicas, and a front end that is not there."""


def _where(kind: Any, help: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=WHERE)]


def _limit(kind: Any, help: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=LIMITS)]


OPTIONS: dict[str, Any] = {
    "model": _where(str | None, "Name in the zoo or path of a config.json."),
    "gpu": _where(str | None, "Name or path of a hardware profile."),
    "system": _where(str | None, "Serving system, see `sim systems`."),
    "deployment": _where(Path | None, "YAML file; options override it.", "--deployment", "-c"),
    "router": _where(str | None, "Which replica gets a request, see the guide to clusters."),
    "tensor_parallel_size": _where(int | None, "GPUs per layer.", "--tensor-parallel-size", "--tp"),
    "pipeline_parallel_size": _where(int | None, "Pipeline stages.", "--pipeline-parallel-size", "--pp"),
    "data_parallel_size": _where(
        int | None, "Attention data parallel ranks of a MoE.", "--data-parallel-size", "--dp"
    ),
    "expert_parallel_size": _where(
        int | None, "Ranks that hold whole experts.", "--expert-parallel-size", "--ep"
    ),
    "interconnect": _where(str | None, "How the GPUs of a box are joined: nvlink, nvlink-bridge or pcie."),
    "interconnect_bandwidth": _where(float | None, "Bus bandwidth of all-reduces over PCIe, GB/s."),
    "num_replicas": _where(int | None, "Replicas behind the router."),
    "dtype": _where(str | None, "Format of the weights: bf16, fp8, int4 …"),
    "kv_cache_dtype": _where(str | None, "Format of keys and values."),
    "speculation": _where(
        str | None,
        "Speculative decoding: method=draft,model=llama-3.2-1b,tokens=4,acceptance=0.7; methods draft, eagle, mtp, "
        "medusa, ngram; none switches off what the file states.",
    ),
    "max_num_seqs": _limit(int | None, "Running sequences at most."),
    "max_num_batched_tokens": _limit(int | None, "Tokens per step."),
    "max_model_len": _limit(int | None, "Longest sequence, tokens."),
    "block_size": _limit(int | None, "Tokens per KV block."),
    "num_gpu_blocks": _limit(int | None, "KV blocks, instead of what the memory gives."),
    "gpu_memory_utilization": _limit(float | None, "Share of the memory the system may use."),
    "enable_prefix_caching": _limit(
        bool | None, "Share KV.", "--enable-prefix-caching/--no-enable-prefix-caching"
    ),
    "enable_chunked_prefill": _limit(
        bool | None,
        "Cut prompts to the token budget.",
        "--enable-chunked-prefill/--no-enable-chunked-prefill",
    ),
    "async_scheduling": _limit(
        bool | None, "Decide a step while the last one runs.", "--async-scheduling/--no-async-scheduling"
    ),
    "scheduling_policy": _limit(str | None, "fcfs or priority."),
    "default_max_tokens": _limit(
        str | None, "Output limit where the trace has none: a number, pow2 or exact."
    ),
    "request_overhead_ms": _limit(
        str | None, "Front end before the scheduler (HTTP, tokenisation), counted in TTFT: ms, or fitted."
    ),
    "option": _limit(
        list[str] | None, "NAME=VALUE of the system's own, see `sim systems NAME`.", "--option", "-o"
    ),
}
"""By name of the field of `Deployment`; ``deployment`` is a file of them and ``option`` a system's own."""


def with_deployment(
    simulated: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command takes a mapping ``stated`` of what was given, and has an option for each instead.

    Not *simulated*: the server is real and only its device is not, so that some do not apply.
    """
    own = {name: kind for name, kind in OPTIONS.items() if simulated or name not in SIMULATED}
    return with_options({**own, **TECHNIQUES}, "stated")


def read_deployment(stated: Mapping[str, Any]) -> Deployment:
    """The deployment file, overruled by the options that were given."""
    from simulator.deployment import Deployment

    path = stated.get("deployment")
    values = Deployment.load(path).model_dump(exclude_unset=True) if path else {}
    values |= {name: value for name, value in stated.items() if name not in ("deployment", "option")}
    limit = values.get("default_max_tokens")
    if isinstance(limit, str) and limit.isdecimal():
        values["default_max_tokens"] = int(limit)
    if "option" in stated:
        values["options"] = {**values.get("options", {}), **dict(as_pair(text) for text in stated["option"])}
    return Deployment.of(**values)


def as_pair(text: str) -> tuple[str, Any]:
    """(name, value) of ``NAME=VALUE``, the value read as YAML."""
    import yaml

    from simulator.errors import ConfigurationError

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--option {text!r}: must be NAME=VALUE")
    return name.strip().replace("-", "_"), yaml.safe_load(value)
