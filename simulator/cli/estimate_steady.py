"""``sim estimate --request-rate``: the steady state of one replica in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simulator.errors import ConfigurationError

if TYPE_CHECKING:
    from simulator.analytic import SteadyState
    from simulator.deployment import Resolved

__all__ = ["steady_state"]


def steady_state(
    resolved: Resolved,
    prompt: int,
    output: int,
    request_rate: float | None,
    concurrency: int | None,
    trace: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print the steady state at a rate or a concurrency, with equal requests or the lengths of a trace."""
    state = _state(resolved, prompt, output, request_rate, concurrency, trace)
    price = _price(resolved.profile.device_name)
    if as_json:
        cost = None if price is None else state.cost_per_million(price)
        typer.echo(json.dumps(state.as_dict() | {"usd_per_million_tokens": cost}, indent=2))
    else:
        _print(state, price)


def _state(
    resolved: Resolved,
    prompt: int,
    output: int,
    request_rate: float | None,
    concurrency: int | None,
    trace: Path | None,
) -> SteadyState:
    from simulator.analytic import SteadyState, Traffic
    from simulator.estimate import check_length
    from simulator.workload import read_trace

    if request_rate is not None and concurrency is not None:
        raise ConfigurationError(
            "state --request-rate or --concurrency, not both: one follows from the other"
        )
    if trace is not None:
        rate = 1.0 if concurrency is not None else request_rate
        traffic = Traffic.of_trace(read_trace(trace, spread="uniform"), rate)
    else:
        check_length(resolved.model, prompt, output)
        traffic = Traffic(1.0 if request_rate is None else request_rate, (float(prompt),), float(output))
    if concurrency is not None:
        return SteadyState.at_concurrency(resolved, traffic, concurrency)
    return SteadyState(resolved, traffic)


def _price(gpu: str) -> float | None:
    from simulator.sizing.prices import Prices

    prices = Prices.load()
    return prices.of(gpu).usd_per_hour if gpu in prices else None


def _print(state: SteadyState, price: float | None) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    out, traffic = console(), state.traffic
    out.print(
        f"[bold]{state.resolved.title}[/]: {traffic.request_rate:,.4g} requests/s of {traffic.prompt:.0f} + "
        f"{traffic.output:.0f} tokens, steady state in closed form"
    )
    for line in state.caveats:
        out.print(f"not valid here: {line}", style="yellow", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in _rows(state, price):
        table.add_row(name, value)
    out.print(table)
    for line in state.resolved.provenance:
        out.print(line, style="dim", highlight=False)


def _rows(state: SteadyState, price: float | None) -> list[tuple[str, str]]:
    d: dict[str, Any] = state.as_dict()
    rows = [
        ("stability limit, requests/s", f"{d['stability_limit']:.3g}"),
        ("load", f"{d['load']:.0%}"),
        *([] if state.stable else [("replicas needed at least", f"{d['replicas_needed']:,}")]),
        ("decoding requests", f"{d['batch']:.1f} of at most {d['max_batch']:.0f}"),
        ("step, ms" if state.stable else "step at the limit, ms", f"{1000 * d['step_s']:.2f}"),
        *_speculation(state),
        ("TTFT mean, ms", _ms(state.ttft_s)),
        ("TPOT mean, ms", _ms(state.tpot_s)),
        ("end-to-end mean, ms", _ms(state.e2el_s)),
        ("output tokens/s", f"{d['output_tokens_per_s']:.0f}"),
    ]
    rows += [(f"utilisation of {name}", f"{value:.0%}") for name, value in d["utilisation"].items()]
    if price is None:
        return [*rows, ("$ per million tokens", "no price for this GPU")]
    cost = state.cost_per_million(price)
    return [*rows, *((f"$ per million {name} tokens", f"{value:.3f}") for name, value in cost.items())]


def _speculation(state: SteadyState) -> list[tuple[str, str]]:
    if state.resolved.speculation is None:
        return []
    return [("tokens per step and request", f"{state.resolved.tokens_per_step:.2f}")]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if math.isfinite(seconds) else "grows without end"
