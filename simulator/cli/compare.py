"""``sim compare`` and ``sim explain``: alternatives on one trace."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.varied import HELP

if TYPE_CHECKING:
    from simulator.comparison import Cause, Row
    from simulator.deployment import Deployment
    from simulator.simulation import Result

__all__ = ["compare", "explain"]

SPEAK_FOR_THEMSELVES = ("model", "gpu", "system", "dtype", "speculation")
"""Options of which the value is enough."""

Trace_ = Annotated[Path, typer.Argument(help="Trace of any supported format.", show_default=False)]
Files = Annotated[
    list[Path] | None, typer.Argument(help="Deployment files, one per alternative.", show_default=False)
]
Base = Annotated[
    Path | None, typer.Option("--deployment", "-c", help="What all but what is varied is taken from.")
]
Names = Annotated[list[str] | None, typer.Option(help="Alternatives, separated by commas; repeatable.")]
Vary = Annotated[list[str] | None, typer.Option(help=HELP)]
Rate = Annotated[float | None, typer.Option(help="Rescale arrivals to this mean rate, requests/s.")]
Count = Annotated[int | None, typer.Option(help="Only the first so many requests.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def compare(
    trace: Trace_,
    files: Files = None,
    deployment: Base = None,
    system: Names = None,
    gpu: Names = None,
    model: Names = None,
    vary: Vary = None,
    request_rate: Rate = None,
    num_prompts: Count = None,
    as_json: AsJson = False,
) -> None:
    """Run alternatives on the same TRACE and show them side by side; changes are relative to the first."""
    from simulator.comparison import compare as compare_results

    results = _simulate(
        trace, _alternatives(files, deployment, system, gpu, model, vary), request_rate, num_prompts
    )
    rows = compare_results(results)
    if as_json:
        _print_json([vars(row) for row in rows])
    else:
        _print_rows([name for name, _ in _labels(results)], rows)
        for label, result in _labels(results):
            for warning in result.warnings:
                typer.echo(f"warning: {label}: {warning}")


def explain(
    trace: Trace_,
    files: Files = None,
    deployment: Base = None,
    system: Names = None,
    gpu: Names = None,
    model: Names = None,
    vary: Vary = None,
    request_rate: Rate = None,
    num_prompts: Count = None,
    as_json: AsJson = False,
) -> None:
    """Say what the difference between two alternatives is made of: queueing, memory, prefill, decode, host."""
    from simulator.comparison import explain as explain_results
    from simulator.errors import ConfigurationError

    deployments = _alternatives(files, deployment, system, gpu, model, vary)
    if len(deployments) != 2:
        raise ConfigurationError(f"sim explain compares 2 alternatives, got {len(deployments)}")
    before, after = _simulate(trace, deployments, request_rate, num_prompts)
    causes = explain_results(before, after)
    if as_json:
        _print_json([{**vars(cause), "change": cause.change} for cause in causes])
    else:
        _print_causes([name for name, _ in _labels([before, after])], causes)


def _alternatives(
    files: list[Path] | None,
    base: Path | None,
    system: list[str] | None,
    gpu: list[str] | None,
    model: list[str] | None,
    vary: list[str] | None,
) -> list[Deployment]:
    """Deployments from files, and from every combination of the names and values given."""
    from simulator.cli.varied import names, varied
    from simulator.deployment import Deployment
    from simulator.errors import ConfigurationError

    found = [Deployment.load(path) for path in files or ()]
    named = {"system": system, "gpu": gpu, "model": model}
    axes: dict[str, list[Any]] = {
        key: [part for text in texts for part in names(text)] for key, texts in named.items() if texts
    }
    for name, values in varied(vary or ()).items():
        axes.setdefault(name, []).extend(values)
    stated = Deployment.load(base).model_dump(exclude_unset=True) if base else {}
    if axes:
        found += [_combined(stated, axes, values) for values in itertools.product(*axes.values())]
    elif stated:
        found.append(Deployment.of(**stated))
    if len(found) < 2:
        raise ConfigurationError(
            f"give at least 2 alternatives, got {len(found)}: deployment files, or values as in --system vllm,sglang "
            "or --vary max_num_seqs=64,256"
        )
    for (i, one), (k, other) in itertools.combinations(enumerate(found, 1), 2):
        if one == other:
            raise ConfigurationError(f"alternatives {i} and {k} are the same")
    return found


def _combined(stated: dict[str, Any], axes: dict[str, list[Any]], values: tuple[Any, ...]) -> Deployment:
    """One combination; what is None is left open."""
    from simulator.deployment import Deployment
    from simulator.sizing.options import unfold

    merged = {**stated, **dict(zip(axes, values, strict=True))}
    return Deployment.of(**unfold({name: value for name, value in merged.items() if value is not None}))


def _simulate(
    path: Path, deployments: list[Deployment], request_rate: float | None, num_prompts: int | None
) -> list[Result]:
    from simulator.simulation import simulate
    from simulator.workload import read_trace

    resolved = [deployment.resolve() for deployment in deployments]
    trace = read_trace(path, request_rate=request_rate, limit=num_prompts)
    return [simulate(trace, one) for one in resolved]


def _labels(results: list[Result]) -> list[tuple[str, Result]]:
    """What was stated differently tells the alternatives apart; a value that needs its name has it."""
    stated = [_stated(result) for result in results]
    known = dict.fromkeys([*SPEAK_FOR_THEMSELVES, *(key for one in stated for key in one)])
    keys = [key for key in known if len({str(one.get(key)) for one in stated}) > 1]
    labels = [
        " ".join(_label(result, key) for key in keys) or f"#{i + 1}" for i, result in enumerate(results)
    ]
    return list(zip(labels, results, strict=True))


def _stated(result: Result) -> dict[str, Any]:
    """What was asked for, the system's own options one by one."""
    stated = result.resolved.deployment.model_dump(exclude_unset=True)
    own = stated.pop("options", {})
    return {**stated, **{f"options.{name}": value for name, value in own.items()}}


def _label(result: Result, key: str) -> str:
    if key == "speculation":
        speculation = result.resolved.deployment.speculation
        return "no speculation" if speculation is None else speculation.text
    config = result.resolved.config
    value = {**config, **config["options"]}.get(key.removeprefix("options."))
    text = "as it is" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if key in SPEAK_FOR_THEMSELVES else f"{key.removeprefix('options.')} {text}"


def _print_rows(labels: list[str], rows: list[Row]) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right")
    for row in rows:
        cells = [
            _cell(value, change, i)
            for i, (value, change) in enumerate(zip(row.values, row.changes, strict=True))
        ]
        table.add_row(f"{row.name} {row.unit}".strip(), *cells)
    console().print(table)


def _cell(value: float | None, change: float | None, column: int) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.2f}"
    if column == 0 or change is None or not round(change, 3):
        return text
    return f"{text} ({change:+.1%})" if change < 10 else f"{text} (×{1 + change:,.0f})"


def _print_causes(labels: list[str], causes: list[Cause]) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("mean end-to-end latency of a request, ms")
    for label in (*labels, "change"):
        table.add_column(label, justify="right")
    total_before, total_after = sum(c.before for c in causes), sum(c.after for c in causes)
    table.add_row("all", *_milliseconds(total_before, total_after), style="bold")
    for cause in causes:
        if max(cause.before, cause.after) > 1e-3 * max(total_before, total_after):
            table.add_row(cause.name, *_milliseconds(cause.before, cause.after))
    console().print(table)


def _milliseconds(before: float, after: float) -> tuple[str, str, str]:
    return f"{1e3 * before:,.1f}", f"{1e3 * after:,.1f}", f"{1e3 * (after - before):+,.1f}"


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))
