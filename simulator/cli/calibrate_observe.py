"""``sim calibrate observe`` and ``import``: what a client saw of a server that exists."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from calibrate.observe.observation import Observation
    from calibrate.observe.server import Server
    from simulator.workload import Trace

__all__ = ["import_results", "observe"]

LATE = 0.01
"""Seconds by which a client may be late before the reader is told."""


def observe(
    url: Annotated[str, typer.Option(help="Address of the server, such as http://localhost:8000.")],
    trace: Annotated[Path, typer.Option(help="Trace of any supported format.")],
    model: Annotated[str | None, typer.Option(help="Name that the server knows; default: its first.")] = None,
    out: Annotated[Path, typer.Option(help="File for the observation (JSON lines).")] = Path(
        "observation.jsonl"
    ),
    endpoint: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    prompts: Annotated[
        str, typer.Option(help="tokens (ids), text, or auto: ids where the server takes them.")
    ] = "auto",
    request_rate: Annotated[
        float | None, typer.Option(help="Rescale arrivals to this mean rate, requests/s.")
    ] = None,
    rate_scale: Annotated[float, typer.Option(help="Factor of the rate: 2 sends twice as fast.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many requests.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests in flight at most.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds of silence after which a request is given up.")
    ] = 300.0,
    interval: Annotated[float, typer.Option(help="Seconds between two looks at /metrics.")] = 0.5,
    warmup: Annotated[int, typer.Option(help="Requests sent before the clock starts.")] = 1,
    api_key: Annotated[str | None, typer.Option(help="Also OPENAI_API_KEY.")] = None,
    trace_format: Annotated[
        str | None, typer.Option("--format", help="Format of the trace, where it is ambiguous.")
    ] = None,
    time_unit: Annotated[str | None, typer.Option(help="s, ms or us, where ambiguous.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts' tokens.")] = 0,
) -> None:
    """Replay a trace against an OpenAI-compatible server and record what a client sees.

    Prompts are random tokens of the trace's lengths, sharing the prefixes that the trace shares; answers have exactly
    the trace's lengths where the server honours ignore_eos. Every request is written as it ends: Ctrl-C keeps what
    there is. Exit code 1 if a request failed, 130 if interrupted.
    """
    from calibrate.observe.replay import Settings
    from calibrate.observe.replay import observe as replay
    from simulator.workload import read_trace

    _check(endpoint, prompts, rate_scale, timeout, interval, warmup)
    requests = read_trace(
        trace, format=trace_format, time_unit=time_unit, limit=limit, request_rate=request_rate, seed=seed
    )
    requests = requests if rate_scale == 1 else requests.scaled(1 / rate_scale)
    requests = requests.with_max_concurrency(max_concurrency) if max_concurrency is not None else requests
    key = api_key or os.environ.get("OPENAI_API_KEY")
    settings = Settings(url, model, endpoint, prompts, key, timeout, interval, warmup, seed)
    with _bar(len(requests)) as progress:
        observation = replay(requests, settings, out, progress, lambda server: _hello(server, requests))
    report(observation)
    typer.echo(f"written to {out}")
    raise typer.Exit(_exit_code(observation))


def _check(
    endpoint: str, prompts: str, rate_scale: float, timeout: float, interval: float, warmup: int
) -> None:
    from importlib.util import find_spec

    from simulator.errors import ConfigurationError

    if find_spec("aiohttp") is None:
        raise ConfigurationError("observing needs aiohttp: pip install 'servesim[observe]'")
    for name, value, known in (
        ("endpoint", endpoint, ("completions", "chat")),
        ("prompts", prompts, ("auto", "tokens", "text")),
    ):
        if value not in known:
            raise ConfigurationError(f"--{name} {value!r}: must be {', '.join(known)}")
    for name, number in (("rate-scale", rate_scale), ("timeout", timeout), ("interval", interval)):
        if not 0 < number < float("inf"):
            raise ConfigurationError(f"--{name} {number:g}: must be above 0")
    if warmup < 0:
        raise ConfigurationError(f"--warmup {warmup}: must be at least 0")


def _hello(server: Server, trace: Trace) -> None:
    typer.echo(f"{server.model} at {server.url}, version {server.version or 'not stated'}")
    typer.echo(f"  {server.dialect.describe()}")
    cache = (
        f"{server.num_gpu_blocks} blocks of {server.block_size} tokens"
        if server.num_gpu_blocks
        else "not stated"
    )
    typer.echo(f"  metrics: {'yes' if server.has_metrics else 'none in vLLM names'}; KV cache: {cache}")
    typer.echo(
        f"  trace: {len(trace)} requests over {trace.duration:.1f} s, {trace.request_rate:.4g} requests/s"
    )


def report(observation: Observation) -> None:
    """The benchmark's table, what became of the requests, and what to read with care."""
    from simulator.results import format_table

    if observation.finished:
        summary = observation.summary()
        typer.echo(
            format_table(summary, max_concurrency=observation.header.max_concurrency, own=False), nl=False
        )
    states = ", ".join(f"{count} {name}" for name, count in sorted(observation.counts().items()))
    typer.echo(f"requests: {states}")
    for reason, count in observation.reasons().items():
        typer.echo(f"  {count} × {reason}")
    if observation.samples:
        _print_samples(observation)
    for line in cautions(observation):
        typer.echo(f"warning: {line}")


def _print_samples(observation: Observation) -> None:
    samples = observation.samples
    for name, values, scale in (
        ("running", [s.running for s in samples], ""),
        ("waiting", [s.waiting for s in samples], ""),
        ("KV cache %", [100 * s.kv_usage for s in samples], ""),
    ):
        typer.echo(
            f"{name + ':':12} mean {sum(values) / len(values):8.2f}{scale}  max {max(values):8.2f}{scale}"
        )


def cautions(observation: Observation) -> list[str]:
    """What a reader of *observation* must know."""
    import numpy as np

    found = []
    if observation.partial:
        found.append(f"partial: {observation.ended or 'the file does not say how the run ended'}")
    short = sum(1 for r in observation.finished if r.output_length != r.output_wanted)
    if short:
        found.append(f"{short} answers do not have the length that was asked for: is ignore_eos honoured?")
    late = observation.lateness()
    if observation.header.max_concurrency is None and len(late) and np.quantile(late, 0.99) > LATE:
        worst = 1e3 * float(np.quantile(late, 0.99))
        found.append(f"the client was late by {worst:.0f} ms (P99); latencies count from sending")
    uncounted = sum(1 for r in observation.finished if r.token_times is None)
    if uncounted:
        found.append(f"{uncounted} answers without the time of every token: no inter-token latency of theirs")
    return found


def _exit_code(observation: Observation) -> int:
    from calibrate.observe.observation import INTERRUPTED

    if observation.ended == INTERRUPTED:
        return 130
    return 0 if len(observation.finished) == observation.header.num_requests else 1


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("observing", total=total)
        yield lambda done: bar.update(task, completed=done)


def import_results(
    files: Annotated[
        list[Path], typer.Argument(help="Results of `vllm bench serve --save-detailed` or guidellm.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the observations; default: beside each file.")
    ] = None,
) -> None:
    """Read result files of vLLM's benchmark and of guidellm into observations."""
    from calibrate.observe.journal import write_observation
    from calibrate.observe.result_files import import_file

    for file in files:
        runs = import_file(file)
        for k, run in enumerate(runs):
            number = f"-{k + 1}" if len(runs) > 1 else ""
            path = (out or file.parent) / f"{file.stem}{number}.observation.jsonl"
            write_observation(run, path)
            typer.echo(f"{run.header.source}: {run.header.model or 'model not stated'}, {run.header.date}")
            report(run)
            typer.echo(f"written to {path}")
