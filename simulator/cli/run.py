"""``sim run``: replay a trace against a deployment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.deployment_options import as_pair, read_deployment, with_deployment

if TYPE_CHECKING:
    from simulator.workload import Trace

__all__ = ["run"]

TRAFFIC, WHERE, OUTPUT = "Traffic", "Deployment", "Results"


@with_deployment()
def run(
    trace: Annotated[Path, typer.Argument(help="Trace of any supported format.", show_default=False)],
    cluster: Annotated[
        Path | None,
        typer.Option(help="YAML file of a cluster: pools, router, failures …", rich_help_panel=WHERE),
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(help="Rescale arrivals to this mean rate, requests/s.", rich_help_panel=TRAFFIC),
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Requests in flight at most.", rich_help_panel=TRAFFIC)
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Only the first so many requests.", rich_help_panel=TRAFFIC)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Outputs of every request (n).", rich_help_panel=TRAFFIC)
    ] = None,
    num_adapters: Annotated[
        int | None,
        typer.Option(help="LoRA adapters, of which every session uses one.", rich_help_panel=TRAFFIC),
    ] = None,
    trace_format: Annotated[
        str | None,
        typer.Option("--format", help="Format of the trace, where it is ambiguous.", rich_help_panel=TRAFFIC),
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="s, ms or us, where ambiguous.", rich_help_panel=TRAFFIC)
    ] = None,
    spread: Annotated[
        str,
        typer.Option(
            help="uniform spreads arrivals within a quantised clock's tick.", rich_help_panel=TRAFFIC
        ),
    ] = "none",
    trace_block_size: Annotated[
        int | None,
        typer.Option(help="Tokens per hash id of the trace, where ambiguous.", rich_help_panel=TRAFFIC),
    ] = None,
    zero_output: Annotated[
        str | None, typer.Option(help="drop or keep requests without output.", rich_help_panel=TRAFFIC)
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=NAME of a column of a plain CSV.", rich_help_panel=TRAFFIC)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=TRAFFIC)] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="Objective in ms, e.g. ttft:2000; may be repeated.", rich_help_panel=OUTPUT),
    ] = None,
    percentile_metrics: Annotated[
        str, typer.Option(help="Latencies to print.", rich_help_panel=OUTPUT)
    ] = "ttft,tpot,itl",
    metric_percentiles: Annotated[
        str, typer.Option(help="Percentiles to print.", rich_help_panel=OUTPUT)
    ] = "99",
    intervals: Annotated[
        int | None,
        typer.Option(
            help="Repeat with step times drawn from their uncertainty: an interval on every metric.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="Probability of the intervals.", rich_help_panel=OUTPUT)] = 0.9,
    out: Annotated[Path | None, typer.Option(help="Write a run directory.", rich_help_panel=OUTPUT)] = None,
    save_detailed: Annotated[
        bool,
        typer.Option("--save-detailed", help="Per-request arrays in summary.json.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the table.", rich_help_panel=OUTPUT)
    ] = False,
    stated: Any = None,
) -> None:
    """Replay TRACE against a serving system and print what users would feel."""
    options = dict(locals())
    from simulator.cli.run_cluster import cluster_spec, print_classes, print_cluster, print_header
    from simulator.intervals import simulate_with_intervals
    from simulator.results import check_replaceable, format_table, parse_goodput, write_run
    from simulator.simulation import simulate

    objectives = parse_goodput(goodput or [])
    percentiles = _numbers("metric-percentiles", metric_percentiles)
    latencies = _latencies(percentile_metrics)
    resolved = read_deployment(stated).resolve() if cluster is None else cluster_spec(cluster, stated)
    if out is not None:
        check_replaceable(out)
    requests = _trace(options)
    if not quiet:
        header: Any = _print_header if cluster is None else print_header
        header(resolved, requests)
    run_once = simulate if intervals is None else partial(simulate_with_intervals, n=intervals, level=level)
    result = _with_progress(run_once, quiet or intervals is not None)(
        requests,
        resolved,
        seed=seed,
        goodput=objectives,
        percentiles=sorted({50.0, 90.0, 95.0, 99.0, *percentiles}),
    )
    _refuse_if_nothing_fits(result)
    if out is not None:
        write_run(out, result.run(seed=seed), detailed=save_detailed)
    table = format_table(
        result.summary,
        percentile_metrics=latencies,
        percentiles=percentiles,
        request_rate=requests.request_rate,
        max_concurrency=requests.max_concurrency,
    )
    typer.echo(table, nl=False)
    print_classes(result.classes)
    if cluster is not None:
        print_cluster(result)
    elif result.transfers:
        counts = (f"{count:,} {name.replace('kv_', 'KV ')}" for name, count in result.transfers.items())
        typer.echo(f"loaded from host memory: {', '.join(counts)}")
    for line in result.warnings:
        typer.echo(f"warning: {line}")
    if out is not None and not quiet:
        typer.echo(f"written to {out}")


def _refuse_if_nothing_fits(result: Any) -> None:
    """A run in which every request was turned away says nothing about latency: it is a wrong deployment."""
    from simulator.errors import CapacityError

    reasons = result.rejections
    if reasons and sum(reasons.values()) == len(result.trace):
        reason, count = next(iter(reasons.items()))
        raise CapacityError(f"no request fits: {count} of {len(result.trace)} rejected because {reason}")


def _trace(options: dict[str, Any]) -> Trace:
    from simulator.workload import read_trace

    trace = read_trace(
        options["trace"],
        format=options["trace_format"],
        time_unit=options["time_unit"],
        block_size=options["trace_block_size"],
        spread=options["spread"],
        zero_output=options["zero_output"],
        columns=dict(as_pair(text) for text in options["column"] or ()),
        limit=options["num_prompts"],
        request_rate=options["request_rate"],
        seed=options["seed"],
    )
    if options["max_concurrency"] is not None:
        trace = trace.with_max_concurrency(options["max_concurrency"])
    if options["samples"] is not None:
        trace = trace.with_samples(options["samples"])
    if options["num_adapters"] is not None:
        trace = trace.with_adapters(options["num_adapters"], options["seed"])
    return trace


def _numbers(name: str, text: str) -> list[float]:
    from simulator.errors import ConfigurationError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"--{name} {text!r}: must be numbers separated by commas") from None
    if not all(0 <= number <= 100 for number in numbers):
        raise ConfigurationError(f"--{name} {text!r}: must be from 0 to 100")
    return numbers


def _latencies(text: str) -> list[str]:
    from simulator.errors import UnknownNameError
    from simulator.results import LATENCIES

    names, known = [name.strip() for name in text.split(",")], [latency.tag for latency in LATENCIES]
    for name in names:
        if name not in known:
            raise UnknownNameError("latency", name, known)
    return names


def _print_header(resolved: Any, trace: Trace) -> None:
    typer.echo(resolved.title)
    typer.echo(
        f"  trace: {len(trace)} requests over {trace.duration:.1f} s, {trace.request_rate:.4g} requests/s"
    )
    for line in resolved.provenance:
        typer.echo(f"  {line}")
    typer.echo(f"  defaults: {'; '.join(resolved.chosen) or 'none'}")


def _with_progress(simulate: Any, quiet: bool) -> Any:
    """*simulate* with a bar on a terminal, for runs long enough to want one."""
    import sys

    if quiet or not sys.stderr.isatty():
        return simulate

    def with_bar(*args: Any, **options: Any) -> Any:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("simulating", total=1.0)
            return simulate(*args, **options, progress=lambda done: bar.update(task, completed=done))

    return with_bar
