"""``sim calibrate validate``: a trace through the real engine and through the simulator, held together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from calibrate.observe.prediction import Prediction
    from calibrate.validation import Comparison

__all__ = ["print_agreement", "validate"]


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
    out: Annotated[
        Path | None, typer.Option(help="Folder for validation.html, the recording and tables.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the errors into PROFILE, which shows them from then on.")
    ] = False,
) -> None:
    """Run a trace through the real engine and through the simulator, and print where they differ."""
    from calibrate.observe.journal import is_observation
    from calibrate.recorded import read_recording
    from calibrate.validation import compare_run, write_end_to_end
    from simulator.errors import ConfigurationError, InputError

    if (trace is None) == (recorded is None):
        raise ConfigurationError("give either --trace, run here, or --recorded, a run recorded before")
    if recorded is not None:
        if is_observation(recorded):
            needed = (
                "is what a client saw of a server: hold it against a profile with `sim calibrate predict`"
            )
            raise InputError(recorded, needed)
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
    if write:
        write_end_to_end(profile, [comparison])
        typer.echo(f"wrote the errors into {profile}")


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
    print_agreement(comparison)
    _print_steps(comparison)
    typer.echo(f"\n{comparison.same.text()}")


def print_agreement(comparison: Comparison | Prediction) -> None:
    """Request by request, and how far the two distributions are apart."""
    typer.echo(
        f"\n{'by request':12}{'median |error|':>15}{'p90 |error|':>13}{'distance of distributions':>27}"
    )
    for row in comparison.agreement().to_dict("records"):
        errors = f"{100 * row['median']:13.1f} %{100 * row['p90']:11.1f} %"
        typer.echo(f"{row['metric']:12}{errors}{row['distance']:27.3f}")


def _print_steps(comparison: Comparison) -> None:
    """By kind and batch size: whole steps, and of them the device's and the host's part."""
    from calibrate.step_errors import summarize_steps, worst_part

    head = f"{'rows':9}{'count':>7}{'engine s':>11}{'predicted':>11}{'error':>9}"
    typer.echo(f"\n{'steps':9}{head}{'device s':>11}{'operators':>11}{'host s':>11}{'predicted':>11}")
    for row in summarize_steps(comparison.steps).to_dict("records"):
        whole = f"{row['measured']:11.4f}{row['predicted']:11.4f}{100 * row['error']:+7.1f} %"
        parts = "".join(f"{row[name]:11.4f}" for name in ("device", "operators", "host", "host_predicted"))
        typer.echo(f"{row['kind']:9}{row['rows']:9}{row['count']:7.0f}{whole}{parts}")
    typer.echo(worst_part(comparison.steps))


def _write(recording: dict[str, Any], comparison: Comparison, out: Path) -> None:
    from calibrate.measure.recording import write_recording
    from calibrate.report import write_validation_report

    write_recording(recording, out / "recording.json.gz")
    comparison.metrics.to_csv(out / "comparison.csv", index=False)
    comparison.requests.to_csv(out / "requests.csv", index=False)
    comparison.steps.to_csv(out / "steps.csv", index=False)
    write_validation_report(comparison, out / "validation.html", "Engine and simulator")
    typer.echo(f"wrote {out}/validation.html, recording.json.gz, comparison.csv, requests.csv, steps.csv")
