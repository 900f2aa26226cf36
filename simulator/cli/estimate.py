"""``sim estimate``: the closed-form view of one batch, without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.technique_options import with_techniques
from simulator.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.estimate import Estimate, Phase

__all__ = ["estimate"]


@with_techniques
def estimate(
    model: Annotated[str | None, typer.Option(help="Name, Hugging Face id or path of a config.json.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Name or path of a hardware profile.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of every prompt.")] = 1024,
    output: Annotated[int, typer.Option(help="Tokens that every request generates.")] = 256,
    batch: Annotated[int | None, typer.Option(help="Requests that start together. [default: 1]")] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="Steady state instead of one batch: requests/s, Poisson.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Steady state with so many requests in the system.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Steady state with the lengths of this trace, at its rate.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Serving system, see `sim systems`.")] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "--tp", help="GPUs per layer.")
    ] = 1,
    pipeline_parallel_size: Annotated[
        int, typer.Option("--pipeline-parallel-size", "--pp", help="Pipeline stages.")
    ] = 1,
    data_parallel_size: Annotated[
        int,
        typer.Option("--data-parallel-size", "--dp", help="Attention data parallel ranks of a MoE model."),
    ] = 1,
    expert_parallel_size: Annotated[
        int, typer.Option("--expert-parallel-size", "--ep", help="Ranks that hold whole experts.")
    ] = 1,
    interconnect: Annotated[
        str | None, typer.Option(help="How the GPUs of a box are joined: nvlink, nvlink-bridge or pcie.")
    ] = None,
    interconnect_bandwidth: Annotated[
        float | None, typer.Option(help="Bus bandwidth of all-reduces over PCIe, GB/s.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Format of the weights: bf16, fp8, int4 …")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="Format of keys and values.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of the memory to use.")] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            help="Speculative decoding: method=eagle,tokens=3,acceptance=0.8/0.6/0.5; methods draft, eagle, mtp, "
            "medusa, ngram.",
        ),
    ] = None,
    operators: Annotated[bool, typer.Option("--operators", help="Also list every operator.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")] = False,
    techniques: Any = None,
) -> None:
    """Memory, FLOPs, bytes, TTFT and TPOT of one batch; or, with a rate, the steady state in closed form."""
    from simulator.deployment import Deployment
    from simulator.estimate import Estimate

    stated = {
        "model": model,
        "gpu": gpu,
        "system": system,
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "data_parallel_size": data_parallel_size,
        "expert_parallel_size": expert_parallel_size,
        "interconnect": interconnect,
        "interconnect_bandwidth": interconnect_bandwidth,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "gpu_memory_utilization": gpu_memory_utilization,
        "speculation": speculation,
        **techniques,
    }
    deployment = Deployment.of(**{key: value for key, value in stated.items() if value is not None})
    if request_rate is not None or concurrency is not None or trace is not None:
        from simulator.cli.estimate_steady import steady_state

        if batch is not None or operators:
            named = "--operators" if batch is None else f"--batch {batch}"
            raise ConfigurationError(f"{named}: of one batch; a steady state has its own")
        steady_state(deployment.resolve(), prompt, output, request_rate, concurrency, trace, as_json=as_json)
        return
    result = Estimate(deployment.resolve(), prompt, output, 1 if batch is None else batch)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _print(result, operators=operators)


def _print(result: Estimate, *, operators: bool) -> None:
    from simulator.cli.console import console

    out = console()
    resolved = result.resolved
    out.print(
        f"[bold]{resolved.title}[/], {resolved.precision.weights} weights, {resolved.precision.kv} KV; "
        f"{result.batch} x ({result.prompt} + {result.output}) tokens"
    )
    defaults = [line for line in resolved.chosen if line.split(":")[0] in ("model", "gpu", "system", "dtype")]
    if defaults:
        out.print(f"defaults chosen: {'; '.join(defaults)}", style="dim")
    for line in resolved.warnings:
        out.print(f"warning: {line}", style="yellow")
    sections = [_memory(result), _work(result), *_speculation(result), _latency(result)]
    for table in [*sections, *([_operators(result.prefill), _operators(result.decode)] if operators else [])]:
        out.print(table)
    out.print("\nWhat the hand calculation misses:")
    for line in result.hand.misses:
        out.print(f"  - {line}", highlight=False)
    for line in resolved.provenance:
        out.print(line, style="dim", highlight=False)


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold"
    )
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _memory(result: Estimate) -> Table:
    resolved, budget = result.resolved, result.resolved.budget
    table = _table("\nMemory per GPU", "item", "GB")
    for item, size in {**budget.items, "unused": budget.unused, "total": budget.total}.items():
        table.add_row(item.replace("_", " "), f"{size / 1e9:.2f}")
    cached = resolved.deployment.kv_cache is not False
    kv = resolved.model.kv_bytes_per_token(resolved.precision.kv) if cached else 0.0
    tokens = resolved.num_gpu_blocks * budget.block_size
    table.add_row("KV per token, whole model", f"{kv / 1024:.1f} KiB")
    table.add_row("KV cache holds" if cached else "a forward holds", f"{tokens:,} tokens")
    table.add_row(f"  requests of {result.prompt + result.output} tokens", f"{result.max_batch:,}")
    return table


def _work(result: Estimate) -> Table:
    headings = (
        "forward, per GPU",
        "TFLOP",
        "GB moved",
        "FLOPs at peak, ms",
        "bytes at peak, ms",
        "bound by",
        "ideal, ms",
        "expected, ms",
    )
    table = _table("\nWork", *headings)
    names = {"prefill": "prefill, largest forward", "decode": "decode, half-way"}
    for phase in (result.prefill, result.decode):
        times = (phase.compute_s, phase.memory_s)
        table.add_row(
            names[phase.name],
            f"{phase.flops / 1e12:.3f}",
            f"{phase.bytes / 1e9:.2f}",
            *(f"{1e3 * time:.2f}" for time in times),
            phase.bound,
            f"{1e3 * phase.ideal_s:.2f}",
            f"{1e3 * phase.expected_s:.2f}",
        )
    return table


def _speculation(result: Estimate) -> list[Table]:
    found = result.speculation
    if found is None:
        return []
    table = _table("\nSpeculation, decode step half-way", "", "")
    rows = [
        ("tokens per step and sequence", f"{found.tokens_per_step:.2f}"),
        ("drafting, ms", f"{1e3 * found.drafting_s:.2f}"),
        ("verifying, ms", f"{1e3 * found.verifying_s:.2f}"),
        ("the same step without speculation, ms", f"{1e3 * found.plain_s:.2f}"),
        ("speed-up of decoding", f"{found.speedup:.2f}"),
    ]
    for row in rows:
        table.add_row(*row)
    return [table]


def _latency(result: Estimate) -> Table:
    hand, batch = result.hand, result.batch
    table = _table("\nLatency and throughput", "", "ideal", "expected", "by hand")
    model = result.resolved.model
    flops, token = (
        batch * model.prefill_flops(result.prompt) / 1e12,
        model.flops_per_token(result.prompt) / 1e12,
    )
    rows: list[tuple[str, float, float, float | None]] = [
        ("TTFT of the batch, ms", 1e3 * result.ttft(ideal=True), 1e3 * result.ttft(), 1e3 * hand.ttft_s),
        ("TPOT, ms", 1e3 * result.tpot(ideal=True), 1e3 * result.tpot(), 1e3 * hand.tpot_s),
        ("output tokens/s", result.throughput(ideal=True), result.throughput(), None),
        ("parameters, B", model.total_parameters / 1e9, model.total_parameters / 1e9, hand.parameters / 1e9),
        ("prefill of the batch, TFLOP", flops, flops, hand.prefill_flops / 1e12),
        ("per decoded token, TFLOP", token, token, hand.flops_per_token / 1e12),
    ]
    for name, *values in rows:
        table.add_row(name, *("" if value is None else f"{value:,.2f}" for value in values))
    return table


def _operators(phase: Phase) -> Table:
    table = _table(
        f"\nOperators of {phase.name}, all layers, per GPU",
        "operator",
        "GFLOP",
        "MB",
        "ideal, µs",
        "expected, µs",
        "bound by",
    )
    for work in phase.operators:
        ideal = max(work.compute_s, work.memory_s)
        table.add_row(
            work.name,
            f"{work.flops / 1e9:.2f}",
            f"{work.bytes / 1e6:.1f}",
            f"{1e6 * ideal:.1f}",
            f"{1e6 * work.seconds:.1f}",
            work.bound,
        )
    return table
