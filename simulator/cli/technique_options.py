"""The switches of `simulator.techniques` as options of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

__all__ = ["OPTIONS", "with_options", "with_techniques"]

PANEL = "Techniques"


def _option(kind: Any, help: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=PANEL, show_default=False)]


def _switch(name: str, help: str) -> Any:
    return _option(bool | None, help, f"--{name}/--no-{name}")


OPTIONS: dict[str, Any] = {
    "flash_attention": _switch("flash-attention", "Keep attention scores on the chip, or in memory."),
    "kernel_fusion": _switch("kernel-fusion", "Norms, rotary and activation as one kernel each, or unfused."),
    "enforce_eager": _switch("enforce-eager", "Launch every kernel instead of replaying CUDA graphs."),
    "kv_cache": _switch("kv-cache", "Keep keys and values, or compute them again in every step."),
    "attention": _option(str | None, "What if the model had mha, mqa or gqa-N?"),
    "sampling": _option(str | None, "greedy, random or top-p."),
    "guided_decoding": _option(float | None, "Share of requests constrained by a grammar, 0 to 1."),
    "guided_decoding_backend": _option(str | None, "xgrammar or gbnf."),
    "enable_lora": _switch("enable-lora", "LoRA adapters, named by the trace's `lora` column."),
    "max_loras": _option(int | None, "Adapters in a batch."),
    "max_lora_rank": _option(int | None, "Rank that the adapters' slots hold."),
    "kv_offloading_size": _option(float | None, "GiB of host memory for KV that left the GPU."),
    "decode_context_parallel_size": _option(
        int | None, "Ranks over which a sequence's KV is spread.", "--decode-context-parallel-size", "--dcp"
    ),
    "prefill_context_parallel_size": _option(
        int | None, "GPUs over which a prompt is spread.", "--prefill-context-parallel-size", "--pcp"
    ),
}
"""Every field of `Techniques`, by name."""


def with_techniques(command: Callable[..., None]) -> Callable[..., None]:
    """*command*, which takes a mapping ``techniques``, with an option for each of them instead."""
    return with_options(OPTIONS, "techniques", last=True)(command)


def with_options(
    options: Mapping[str, Any], into: str, last: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command takes a mapping *into* of those of *options* that were given, and has each as an option.

    ``--help`` shows them before the command's own, or *last*.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            stated = {name: value for name, value in given.items() if value not in (None, [])}
            command(**values, **{into: stated})

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name != into
        ]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in options.items()
        ]
        ordered = [*own, *added] if last else [*added, *own]
        wrapped.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
        return wrapped

    return decorate
