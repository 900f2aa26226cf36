"""``sim calibrate validate``: a trace through the real engine and through the simulator, held together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from calibrate.validation import Comparison

__all__ = ["validate"]


def validate(
    profile: Annotated[Path, typer.Argument(help="Profile that `sim calibrate fit` wrote.")],
    trace: Annotated[
        Path | None, typer.Option(help="Trace of any supported format; run on the engine.")
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(help="A run that `python -m calibrate replay` recorded, instead of --trace."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Directory with a config.json, or a zoo name.")] = None,
    system: Annotated[str, typer.Option(help="Scheduling policy.")] = "vllm",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    clock: Annotated[
        str | None, typer.Option(help="wall, or thread: CPU time of the thread (default on a CPU).")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Running sequences at most.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 2048,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence, tokens.")] = None,
    num_gpu_blocks: Annotated[int | None, typer.Option(help="KV blocks.")] = None,
    limit: Annotated[int | None, typer.Option(help="First requests of the trace only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for recording.json and comparison.csv.")] = None,
) -> None:
    """Run a trace through the real engine and through the simulator, and print where they differ."""
    from calibrate.recorded import read_recording
    from calibrate.validation import compare_run
    from simulator.errors import ConfigurationError

    if (trace is None) == (recorded is None):
        raise ConfigurationError("give either --trace, run here, or --recorded, a run recorded before")
    if recorded is not None:
        recording = read_recording(recorded)
    else:
        if model is None:
            raise ConfigurationError("--trace needs --model, which the engine runs")
        limits = {
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_model_len": max_model_len,
            "num_gpu_blocks": num_gpu_blocks,
        }
        assert trace is not None
        recording = _record(trace, limit, model, system, device, clock, limits)
    comparison = compare_run(recording, str(profile), model)
    _print(comparison)
    if out is not None:
        _write(recording, comparison, out)


def _record(
    path: Path,
    limit: int | None,
    model: str,
    system: str,
    device: str,
    clock: str | None,
    limits: dict[str, Any],
) -> dict[str, Any]:
    from calibrate.measure.recording import Job, make_clock, record_run, set_threads
    from engine.llm import LLM
    from simulator.workload import read_trace

    trace = read_trace(path).in_arrival_order()
    trace = trace if limit is None else trace.limit(limit)
    columns = (trace.arrival_time, trace.input_length, trace.output_length)
    jobs = [Job(float(at), int(tokens), int(outputs)) for at, tokens, outputs in zip(*columns, strict=True)]
    set_threads(device)
    llm = LLM(model, device=device, load_format="dummy", **limits)
    return record_run(llm, jobs, make_clock(clock or ("thread" if device == "cpu" else "wall")), system)


def _print(comparison: Comparison) -> None:
    typer.echo(f"{'metric':12}{'statistic':11}{'engine':>12}{'simulator':>12}{'error':>9}")
    for name, statistic, measured, simulated, off in comparison.metrics.to_numpy(object).tolist():
        error = "" if off != off else f"{100 * off:+.1f} %"
        typer.echo(f"{name:12}{statistic:11}{measured:12.5g}{simulated:12.5g}{error:>9}")
    head = f"{'count':>7}{'engine s':>11}{'predicted s':>13}{'of it operators':>17}{'error':>9}"
    typer.echo(f"\n{'steps':12}{head}")
    for row in comparison.steps.reset_index().to_dict("records"):
        sums = f"{row['measured']:11.4f}{row['predicted']:13.4f}{row['operators']:17.4f}"
        typer.echo(f"{row['kind']:12}{row['count']:7}{sums}{100 * row['error']:+8.1f} %")
    typer.echo(f"\n{comparison.same.text()}")


def _write(recording: dict[str, Any], comparison: Comparison, out: Path) -> None:
    from calibrate.measure.recording import write_recording

    write_recording(recording, out / "recording.json")
    comparison.metrics.to_csv(out / "comparison.csv", index=False)
    comparison.steps.to_csv(out / "steps.csv")
    typer.echo(f"wrote {out}/recording.json, comparison.csv, steps.csv")
