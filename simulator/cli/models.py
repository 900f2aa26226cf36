"""``sim models``: the models in the zoo, or one of them in full."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.models import ModelSpec

__all__ = ["models"]


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One model: a name, a Hugging Face id or the path of a config.json.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes and parameters.")] = False,
) -> None:
    """List the models in the zoo, or show one with its parameters by part."""
    from simulator.models import list_models, load_model

    chosen = [load_model(entry) for entry in ([name] if name else list_models())]
    if as_json:
        rows = [describe(spec) for spec in chosen]
        typer.echo(json.dumps(rows[0] if name else rows, indent=2))
    elif name:
        _print_one(chosen[0])
    else:
        _print_table(chosen)


def describe(spec: ModelSpec) -> dict[str, Any]:
    """One model as plain values; bytes in the published precision, KV in its cache format."""
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "total_parameters": spec.total_parameters,
        "active_parameters": spec.active_parameters,
        "parameters_by_part": spec.parameters_by_part(),
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "attention": attention_kind(spec),
        "num_attention_heads": spec.num_attention_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "layers_by_window": layers_by_window(spec),
        "weights_dtype": spec.native.moe or spec.native.weights,
        "weight_bytes": spec.weight_bytes(),
        "kv_bytes_per_token": spec.kv_bytes_per_token(spec.native.kv),
    }


def layers_by_window(spec: ModelSpec) -> dict[str, int]:
    """Layers that attend to so many tokens; ``full`` without a window."""
    counts: dict[str, int] = {}
    for layer in spec.layers:
        key = str(layer.window or "full")
        counts[key] = counts.get(key, 0) + layer.count
    return counts


def attention_kind(spec: ModelSpec) -> str:
    """MHA, GQA, MQA or MLA."""
    if spec.attention.latent is not None:
        return "MLA"
    if spec.num_kv_heads == spec.num_attention_heads:
        return "MHA"
    return "MQA" if spec.num_kv_heads == 1 else "GQA"


def _print_table(chosen: list[ModelSpec]) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    for heading in (
        "parameters, B",
        "active, B",
        "layers",
        "hidden",
        "attention",
        "KV, KiB/token",
        "weights, GB",
        "context",
    ):
        table.add_column(heading, justify="right")
    for spec in chosen:
        table.add_row(
            spec.name,
            f"{spec.total_parameters / 1e9:.2f}",
            f"{spec.active_parameters / 1e9:.2f}",
            str(spec.num_layers),
            str(spec.hidden_size),
            f"{attention_kind(spec)} {spec.num_attention_heads}:{spec.num_kv_heads}",
            f"{spec.kv_bytes_per_token(spec.native.kv) / 1024:.0f}",
            f"{spec.weight_bytes() / 1e9:.1f}",
            f"{spec.max_position_embeddings:,}",
        )
    console().print(table)


def _print_one(spec: ModelSpec) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    row = describe(spec)
    parts = row.pop("parameters_by_part")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in row.items():
        table.add_row(
            key.replace("_", " "), f"{value:,.0f}" if isinstance(value, int | float) else str(value)
        )
    for part, count in parts.items():
        table.add_row(f"  {part} parameters", f"{count:,}")
    console().print(table)
