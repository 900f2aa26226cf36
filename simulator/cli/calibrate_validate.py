"""``sim calibrate validate``: a trace through the real engine and through the simulator, held together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from calibrate.observe.prediction import Prediction
    from calibrate.validation import Comparison

__all__ = ["print_agreement", "validate"]

OBSERVED = "is what a client saw of a server: hold it against a profile with `sim calibrate predict`"


def validate(
    profile: Annotated[Path, typer.Argument(help="Profile that `sim calibrate fit` wrote.")],
    trace: Annotated[
        Path | None, typer.Option(help="Trace of any supported format; run on the engine.")
    ] = None,
    loads: Annotated[
        str | None,
        typer.Option(
            help="Shares of the engine's capacity, such as 0.5,0.8,0.95: of --trace only the lengths."
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="With --loads: time for all runs: 90s, 8m, 1h.")] = "8m",
    recorded: Annotated[
        list[Path] | None,
        typer.Option(help="What `python -m calibrate replay` or `loads` recorded, files or folders."),
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
        Path | None, typer.Option(help="Folder for validation.html, recordings and tables.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the errors into PROFILE, which shows them from then on.")
    ] = False,
) -> None:
    """Run a trace through the real engine and through the simulator, and print where they differ."""
    from calibrate.observe.journal import is_observation
    from calibrate.recorded import find_recordings, read_recording
    from calibrate.validation import compare_run, write_end_to_end
    from simulator.errors import ConfigurationError, InputError

    if (trace is None) == (not recorded):
        raise ConfigurationError("give either --trace, run here, or --recorded, what was recorded before")
    if recorded:
        paths = find_recordings(recorded)
        for path in filter(is_observation, paths):
            raise InputError(path, OBSERVED)
        runs = {path.name.split(".")[0]: read_recording(path) for path in paths}
    else:
        if model is None:
            raise ConfigurationError("--trace needs --model, which the engine runs")
        assert trace is not None
        settings = {
            "device": device,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_model_len": max_model_len,
            "num_gpu_blocks": num_gpu_blocks,
        }
        plan = _Plan(model, system, clock or ("thread" if device == "cpu" else "wall"), settings)
        runs = plan.record(trace, limit, loads, budget)
    comparisons = {name: compare_run(run, str(profile), model) for name, run in runs.items()}
    for name, comparison in comparisons.items():
        _print(comparison, name if len(runs) > 1 else "")
    if len(runs) > 1:
        _print_summary(comparisons)
    if out is not None:
        _write(comparisons, out)
    if write:
        write_end_to_end(profile, list(comparisons.values()))
        typer.echo(f"wrote the errors into {profile}")


@dataclass
class _Plan:
    """What is run on the engine here."""

    model: str
    system: str
    clock: str
    settings: dict[str, Any]

    def record(
        self, path: Path, limit: int | None, loads: str | None, budget: str
    ) -> dict[str, dict[str, Any]]:
        """The recordings by name: one, or one per load."""
        from calibrate.measure.recording import Job, make_clock, record_run, set_threads
        from engine.llm import LLM
        from simulator.workload import read_trace

        trace = read_trace(path).in_arrival_order()
        trace = trace if limit is None else trace.limit(limit)
        columns = (trace.arrival_time, trace.input_length, trace.output_length)
        jobs = [Job(float(at), int(a), int(b)) for at, a, b in zip(*columns, strict=True)]
        set_threads(self.settings["device"])
        llm = LLM(self.model, load_format="dummy", **self.settings)
        if loads is None:
            return {self.system: record_run(llm, jobs, make_clock(self.clock), self.system)}
        return self._at_loads(llm, [(job.input_length, job.output_length) for job in jobs], loads, budget)

    def _at_loads(
        self, llm: Any, lengths: list[tuple[int, int]], loads: str, budget: str
    ) -> dict[str, dict[str, Any]]:
        from calibrate.measure.loads import Loads, read_loads
        from calibrate.measure.preparation import read_budget
        from calibrate.measure.recording import make_clock
        from calibrate.recorded import read_recording

        shares, now = read_loads(loads), time.thread_time if self.clock == "thread" else time.monotonic
        make = partial(make_clock, self.clock)
        job = Loads(llm, lengths, make, now() + read_budget(budget), self.system, now=now, say=typer.echo)
        with TemporaryDirectory() as folder:
            return {
                path.name.removesuffix(".json.gz"): read_recording(path)
                for path in job.run(shares, Path(folder))
            }


def _print(comparison: Comparison, name: str) -> None:
    if name:
        typer.echo(f"\n== {name}: {len(comparison.recording['requests'])} requests ==")
    if comparison.recording.get("cut_short"):
        typer.echo("cut short when its time was over: latencies are of those that had ended")
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


def _print_summary(comparisons: dict[str, Comparison]) -> None:
    """The errors of all runs, one line each."""
    from calibrate.validation import HEADLINE

    heads = [
        f"{metric} {'' if statistic == 'total' else statistic}".strip() for metric, statistic in HEADLINE
    ]
    typer.echo(f"\n{'simulator / engine - 1':24}{'requests':>9}" + "".join(f"{head:>12}" for head in heads))
    for name, comparison in comparisons.items():
        errors = "".join(f"{100 * comparison.error(*which):+10.1f} %" for which in HEADLINE)
        typer.echo(f"{name:24}{len(comparison.recording['requests']):9}{errors}")


def _write(comparisons: dict[str, Comparison], out: Path) -> None:
    from calibrate.measure.recording import write_recording
    from calibrate.report import write_validation_report

    for name, comparison in comparisons.items():
        write_recording(dict(comparison.recording), out / f"{name}.json.gz")
        comparison.metrics.to_csv(out / f"{name}.metrics.csv", index=False)
        comparison.requests.to_csv(out / f"{name}.requests.csv", index=False)
        comparison.steps.to_csv(out / f"{name}.steps.csv", index=False)
    write_validation_report(comparisons, out / "validation.html", "Engine and simulator")
    typer.echo(
        f"wrote {out}/validation.html and for each run .json.gz, .metrics.csv, .requests.csv, .steps.csv"
    )
