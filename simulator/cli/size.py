"""``sim size``: what to run for a trace, how much of it, what it costs and how sure that is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.varied import HELP as VARY_HELP

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.workload import Trace

__all__ = ["size"]

WHAT, SPACE, ANSWER = "Question", "Search space", "Answer"


def size(
    trace: Annotated[Path, typer.Argument(help="Trace of any supported format.", show_default=False)],
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC:STATISTIC:MS such as ttft:p99:2000, or a preset; repeatable.", rich_help_panel=WHAT
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or path of a config.json.", rich_help_panel=WHAT)
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(help="Rescale arrivals to this mean rate, requests/s.", rich_help_panel=WHAT),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Only the first so many requests.", rich_help_panel=WHAT)
    ] = None,
    trace_format: Annotated[
        str | None,
        typer.Option("--format", help="Format of the trace, where ambiguous.", rich_help_panel=WHAT),
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="$ per hour at most.", rich_help_panel=WHAT)] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="YAML file with prices that override the shipped.", rich_help_panel=WHAT),
    ] = None,
    deployment: Annotated[
        Path | None,
        typer.Option("--deployment", "-c", help="YAML file with what is fixed.", rich_help_panel=SPACE),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="GPU types, separated by commas.", rich_help_panel=SPACE)
    ] = "h100,h200,a100,l40s,mi300x",
    systems: Annotated[str, typer.Option(help="Serving systems.", rich_help_panel=SPACE)] = "vllm",
    tensor_parallel_sizes: Annotated[
        str, typer.Option("--tp", help="GPUs per layer.", rich_help_panel=SPACE)
    ] = "1,2,4,8",
    dtypes: Annotated[
        str, typer.Option(help="Formats of the weights; `published` as they are.", rich_help_panel=SPACE)
    ] = "published,fp8",
    max_num_seqs: Annotated[
        str, typer.Option(help="Running sequences at most; `default`: the system's.", rich_help_panel=SPACE)
    ] = "default,128",
    max_num_batched_tokens: Annotated[
        str, typer.Option(help="Tokens per step; `default`: the system's.", rich_help_panel=SPACE)
    ] = "default,2048",
    pipeline_parallel_sizes: Annotated[
        str, typer.Option("--pp", help="Pipeline stages.", rich_help_panel=SPACE)
    ] = "1",
    chunked_prefill: Annotated[
        str, typer.Option(help="Of `default`, on and off.", rich_help_panel=SPACE)
    ] = "default",
    pools: Annotated[
        str,
        typer.Option(
            help="Prefill and decode replicas apart, such as 1:1,1:2,2:1; `together`: replicas do both.",
            rich_help_panel=SPACE,
        ),
    ] = "together",
    kv_bandwidth: Annotated[
        float | None,
        typer.Option(help="GB/s from a prefill replica to the decode replicas; 25.", rich_help_panel=SPACE),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help=VARY_HELP, rich_help_panel=SPACE),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            help="bound: prune by the analytic bound; exhaustive; optuna: draws; auto: optuna in large spaces.",
            rich_help_panel=SPACE,
        ),
    ] = "auto",
    trials: Annotated[int, typer.Option(help="Draws of optuna.", rich_help_panel=SPACE)] = 200,
    over_time: Annotated[
        bool,
        typer.Option("--over-time", help="Size the best plan for every interval.", rich_help_panel=ANSWER),
    ] = False,
    interval: Annotated[
        float, typer.Option(help="Length of an interval over time, s.", rich_help_panel=ANSWER)
    ] = 900.0,
    confidence: Annotated[float, typer.Option(help="Of the confirmation.", rich_help_panel=ANSWER)] = 0.95,
    confirm_runs: Annotated[
        int, typer.Option(help="Independent simulations that confirm.", rich_help_panel=ANSWER)
    ] = 3,
    workers: Annotated[int, typer.Option(help="Processes.", rich_help_panel=ANSWER)] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh traffic.", rich_help_panel=ANSWER)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for size.json and report.html.", rich_help_panel=ANSWER)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=ANSWER)] = False,
) -> None:
    """Find the cheapest deployment that serves TRACE within the SLO."""
    options = dict(locals())
    from simulator.cli.size_space import search_space
    from simulator.sizing import (
        Prices,
        Search,
        check_directory,
        local_executor,
        parse_slo,
        write_sizing,
    )
    from simulator.sizing.evidence import evidence

    base = _base(options)
    target = parse_slo(slo or [], base.model)
    space = search_space(base, options)
    requests = _trace(options)
    quotes = Prices.load(prices)
    if out is not None:
        check_directory(out)
    limit = float("inf") if max_cost is None else max_cost
    if over_time:
        from simulator.cli.size_over_time import print_over_time
        from simulator.sizing.over_time import size_over_time

        with local_executor(workers) as pool:
            day = size_over_time(
                requests, target, space, quotes, interval=interval, executor=pool, progress=_say(as_json)
            )
        found = day.as_dict()
        if out is not None:
            write_sizing(out, found)
        typer.echo(json.dumps(found, indent=2)) if as_json else print_over_time(found)
        return
    asked = Search(
        requests,
        target,
        space,
        quotes,
        limit,
        confirm_runs,
        confidence,
        seed=seed,
        method=search,
        trials=trials,
    )
    with local_executor(workers) as pool:
        found = evidence(asked.run(pool, progress=_say(as_json)), pool)
    if out is not None:
        write_sizing(out, found)
    typer.echo(json.dumps(found, indent=2)) if as_json else _print(found)


def _say(quiet: bool) -> Any:
    if quiet or not sys.stderr.isatty():
        return lambda text: None
    return lambda text: typer.echo(f"  {text}", err=True)


def _base(options: dict[str, Any]) -> Deployment:
    from simulator.deployment import Deployment

    path = options["deployment"]
    stated = Deployment.load(path).model_dump(exclude_unset=True) if path else {}
    if options["model"] is not None:
        stated["model"] = options["model"]
    return Deployment.of(**stated)


def _trace(options: dict[str, Any]) -> Trace:
    from simulator.workload import read_trace

    return read_trace(
        options["trace"],
        format=options["trace_format"],
        limit=options["num_prompts"],
        request_rate=options["request_rate"],
        spread="uniform",
        seed=options["seed"],
    )


def _print(found: dict[str, Any]) -> None:
    from simulator.cli.console import console
    from simulator.sizing.wording import headline, paragraphs

    out = console()
    out.print(f"[bold]{headline(found)}[/]")
    for line in paragraphs(found):
        out.print(line, highlight=False, markup=False)
    out.print(_ranking(found))
    _print_cheaper(out, found)
    out.print(_sensitivity(found))
    for line in found["would_change"]:
        out.print(f"would change the answer: {line}", highlight=False, markup=False)
    for line in found["provenance"]:
        out.print(line, style="dim", highlight=False, markup=False)


def _ranking(found: dict[str, Any], rows: int = 8) -> Any:
    from rich.table import Table

    table = Table(title="\nPlans", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("plan")
    for heading in ("replicas", "GPUs", "$/h", "requests/s per replica", "of the limit"):
        table.add_column(heading, justify="right")
    for plan in found["ranking"][:rows]:
        run = plan["run"]
        worst = max(run["objectives"], key=lambda one: one["ratio"] or float("inf")) if run else None
        table.add_row(
            plan["name"],
            str(plan["deployment"]["num_replicas"]),
            str(plan["num_gpus"]),
            f"{plan['usd_per_hour']:.2f}",
            f"{plan['capacity']['request_rate']:.2f}",
            f"{100 * worst['ratio']:.0f} % {worst['objective']}" if worst else "not run in full",
        )
    return table


def _print_cheaper(out: Any, found: dict[str, Any], rows: int = 8) -> None:
    from rich.table import Table

    from simulator.sizing.wording import CHEAPER_HEADINGS, cheaper_rows

    left = cheaper_rows(found)
    if not left:
        return
    table = Table(
        title="\nCheaper, and why not", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for heading in CHEAPER_HEADINGS:
        table.add_column(heading, justify="right" if heading == "$/h" else "left")
    for row in left[:rows]:
        table.add_row(*row)
    out.print(table)
    if len(left) > rows:
        out.print(f"{len(left) - rows} more in the files of --out and with --json", highlight=False)


def _sensitivity(found: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title="\nIf it were different", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    table.add_column("change")
    table.add_column("replicas", justify="right")
    table.add_column("$/h", justify="right")
    for row in found["sensitivity"]:
        if "problem" in row:
            table.add_row(row["change"], "", row["problem"])
        else:
            table.add_row(row["change"], str(row["replicas"]), f"{row['usd_per_hour']:.2f}")
    return table
