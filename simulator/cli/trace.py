"""`sim trace`: look at a trace, convert it to the canonical JSONL, generate one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.errors import ConfigurationError

if TYPE_CHECKING:
    from simulator.workload import Trace
    from simulator.workload.generate import Arrivals
    from simulator.workload.stats import TraceStats

app = typer.Typer(help="Look at traces, convert them, generate them.", no_args_is_help=True)

TraceFile = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A trace of any supported format, plain or gzip.")
]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="The canonical JSONL to write.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="Importer; recognised if not given.")]
TimeUnit = Annotated[str | None, typer.Option(help="s, ms, us or ns, where the format does not define it.")]
BlockSize = Annotated[int | None, typer.Option(help="Tokens per block of the file's hash ids.")]
Spread = Annotated[str, typer.Option(help="none, or uniform: draw requests of one clock tick apart.")]
ZeroOutput = Annotated[str | None, typer.Option(help="drop or keep (as one token) requests without output.")]
SessionContext = Annotated[
    str | None, typer.Option(help="Whether later turns' lengths are the full prompt or the delta.")
]
CharactersPerToken = Annotated[float | None, typer.Option(help="For files of text instead of lengths.")]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", help="Our column's name=the file's, e.g. input_length=prompt.")
]
RequestRate = Annotated[
    float | None,
    typer.Option(help="Stretch to this mean rate per s, or Poisson arrivals if the file has none."),
]
TimeScale = Annotated[float | None, typer.Option(help="Multiply gaps and delays.")]
Window = Annotated[str | None, typer.Option(help="Only arrivals from START:END seconds.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many requests.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]


@app.command()
def stats(
    trace: TraceFile,
    format_: FormatOption = None,
    time_unit: TimeUnit = None,
    block_size: BlockSize = None,
    spread: Spread = "none",
    zero_output: ZeroOutput = None,
    session_context: SessionContext = None,
    characters_per_token: CharactersPerToken = None,
    column: ColumnOption = None,
    request_rate: RequestRate = None,
    time_scale: TimeScale = None,
    window: Window = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lengths, rate, burstiness and prefix reuse of a trace."""
    from simulator.workload.stats import trace_stats

    loaded = _load(**_arguments(locals()))
    result = trace_stats(loaded)
    if as_json:
        typer.echo(json.dumps(_without_nan({**result.to_dict(), "meta": dict(loaded.meta)}), indent=2))
        return
    _say_source(loaded)
    _print_table(result)


@app.command()
def convert(
    trace: TraceFile,
    out: Output,
    format_: FormatOption = None,
    time_unit: TimeUnit = None,
    block_size: BlockSize = None,
    spread: Spread = "none",
    zero_output: ZeroOutput = None,
    session_context: SessionContext = None,
    characters_per_token: CharactersPerToken = None,
    column: ColumnOption = None,
    request_rate: RequestRate = None,
    time_scale: TimeScale = None,
    window: Window = None,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Write a trace of any format as canonical JSONL, with where it came from in OUT.meta.json."""
    loaded = _load(**_arguments(locals()))
    _say_source(loaded)
    _write(loaded, out)


@app.command()
def generate(
    out: Output,
    num_prompts: Annotated[int, typer.Option(help="Requests.")] = 1000,
    request_rate: Annotated[float, typer.Option(help="Mean requests per s; inf: all at once.")] = float(
        "inf"
    ),
    arrival: Annotated[
        str,
        typer.Option(help="poisson, constant, gamma, weibull, mmpp, piecewise, ramp or exponential-ramp."),
    ] = "poisson",
    burstiness: Annotated[float, typer.Option(help="Shape of gamma gaps, as in vLLM; 1 is Poisson.")] = 1.0,
    shape: Annotated[float, typer.Option(help="Shape of Weibull gaps.")] = 1.0,
    rates: Annotated[
        str, typer.Option(help="Of mmpp, piecewise (per s, with commas) or the two of a ramp.")
    ] = "",
    durations: Annotated[str, typer.Option(help="s of each rate: fixed (piecewise) or mean (mmpp).")] = "",
    input_length: Annotated[
        str | None, typer.Option(help="A number or e.g. lognormal:mean=1155,sigma=1.")
    ] = None,
    output_length: Annotated[str | None, typer.Option(help="The same for outputs.")] = None,
    lengths_from: Annotated[Path | None, typer.Option(help="Draw pairs of lengths from this trace.")] = None,
    turns: Annotated[
        str | None, typer.Option(help="Requests per session, e.g. uniform:low=1,high=5.")
    ] = None,
    think_time: Annotated[float, typer.Option(help="Mean s between an answer and the next turn.")] = 0.0,
    num_prefixes: Annotated[int, typer.Option(help="Shared prefixes to start prompts with.")] = 0,
    prefix_length: Annotated[str | None, typer.Option(help="Their lengths.")] = None,
    samples: Annotated[int, typer.Option(help="Outputs of every request (n).")] = 1,
    num_adapters: Annotated[int, typer.Option(help="LoRA adapters, of which every session uses one.")] = 0,
    seed: Seed = 0,
) -> None:
    """Generate a synthetic trace."""
    from simulator.workload import Lengths, generate_trace, read_trace

    def lengths(text: str | None) -> Lengths | None:
        return None if text is None else Lengths.parse(text)

    pairs = None if lengths_from is None else read_trace(lengths_from, request_rate=float("inf"))
    trace = generate_trace(
        num_prompts,
        arrivals=_process(arrival, request_rate, burstiness, shape, rates, durations),
        input_length=lengths(input_length),
        output_length=lengths(output_length),
        lengths_from=pairs,
        turns=lengths(turns),
        think_time=think_time,
        num_prefixes=num_prefixes,
        prefix_length=lengths(prefix_length),
        samples=samples,
        num_adapters=num_adapters,
        seed=seed,
    )
    _write(trace, out)


def _process(name: str, rate: float, burstiness: float, shape: float, rates: str, durations: str) -> Arrivals:
    """The arrival process called *name*."""
    from simulator.errors import UnknownNameError
    from simulator.workload import arrivals as a

    several, lasting = _numbers("rates", rates), _numbers("durations", durations)
    processes: dict[str, Arrivals] = {
        "poisson": lambda n, g: a.poisson_arrivals(n, rate, g),
        "constant": lambda n, g: a.constant_arrivals(n, rate),
        "gamma": lambda n, g: a.gamma_arrivals(n, rate, burstiness, g),
        "weibull": lambda n, g: a.weibull_arrivals(n, rate, shape, g),
        "mmpp": lambda n, g: a.mmpp_arrivals(n, several, lasting, g),
        "piecewise": lambda n, g: a.piecewise_arrivals(n, several, lasting, g),
        "ramp": lambda n, g: a.ramp_arrivals(n, *_two(several), g, burstiness=burstiness),
        "exponential-ramp": lambda n, g: a.ramp_arrivals(n, *_two(several), g, shape="exponential"),
    }
    if name not in processes:
        raise UnknownNameError("arrival process", name, processes)
    return processes[name]


def _two(rates: list[float]) -> tuple[float, float]:
    if len(rates) != 2:
        raise ConfigurationError(f"--rates {rates}: a ramp needs two, from and to")
    return rates[0], rates[1]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigurationError(f"--{option} {text!r}: must be numbers with commas between") from error


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments without those that are about its output."""
    return {name: value for name, value in given.items() if name not in ("out", "as_json", "trace_stats")}


def _load(
    trace: Path, format_: str | None, column: list[str] | None, window: str | None, **options: Any
) -> Trace:
    """Read the trace that a command's arguments describe."""
    from simulator.workload import read_trace

    columns = {}
    for text in column or ():
        ours, _, theirs = text.partition("=")
        if not ours or not theirs:
            raise ConfigurationError(f"--column {text!r}: must be our_name=their_name")
        columns[ours] = theirs
    bounds = None if window is None else _bounds(window)
    return read_trace(trace, format=format_, columns=columns, window=bounds, **options)


def _bounds(window: str) -> tuple[float, float]:
    start, _, end = window.partition(":")
    try:
        return float(start or 0), float(end or "inf")
    except ValueError as error:
        raise ConfigurationError(f"--window {window!r}: must be START:END in s") from error


def _write(trace: Trace, out: Path) -> None:
    from simulator.workload.export import write_meta

    trace.to_jsonl(out)
    write_meta(trace, out)
    typer.echo(f"{out}: {len(trace)} requests, {trace.duration:.1f} s")


def _say_source(trace: Trace) -> None:
    """One line on how the file was understood, one on what was left out."""
    meta = trace.meta
    unit = f", timestamps in {meta['time_unit']}" if meta.get("time_unit") else ""
    blocks = f", blocks of {meta['block_size']} tokens" if meta.get("block_size") else ""
    typer.echo(f"{meta['path']}: {meta['format']}{unit}{blocks}, {meta['rows_read']} rows")
    dropped = [f"{count} {reason}" for reason, count in meta["rows_dropped"].items()]
    if dropped:
        typer.echo(f"dropped: {', '.join(dropped)}")
    if meta["inversions"]:
        typer.echo(f"time went backwards {meta['inversions']} times; sorted")


def _print_table(stats: TraceStats) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "mean", "p50", "p90", "p99", "max", box=None)
    for name, q in (("input_length", stats.input_length), ("output_length", stats.output_length)):
        table.add_row(name, f"{q.mean:.1f}", *(f"{v:.0f}" for v in (q.p50, q.p90, q.p99, q.max)))
    console = Console(highlight=False)
    console.print(table)
    rows = [
        ("requests", f"{stats.requests}"),
        ("span", f"{stats.span_s:.1f} s"),
        ("request rate", f"{stats.request_rate:.4g} per s"),
        ("clock tick", f"{stats.quantum_s:.7g} s"),
        ("CV of gaps", f"{stats.cv:.3f}"),
        (
            "IDC " + " / ".join(f"{w} s" for w in stats.idc),
            " / ".join(f"{v:.3g}" for v in stats.idc.values()),
        ),
    ]
    if stats.sessions:
        rows.append(("sessions", f"{stats.sessions}, {stats.turns_per_session:.2f} turns each"))
    if stats.runs_per_request:
        share, hits = 100 * stats.prefix_reuse, 100 * stats.requests_with_reuse
        rows.append(
            ("prefix reuse", f"{share:.1f} % of prompt tokens, {hits:.2f} % of requests (infinite cache)")
        )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f" {name:{width}}  {value}", soft_wrap=True)


def _without_nan(value: Any) -> Any:
    """NaN and infinity, which JSON lacks, as null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
