"""``sim calibrate predict``: an observed system held against its simulation, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from calibrate.observe.prediction import Prediction

__all__ = ["predict"]


def predict(
    recording: Annotated[
        Path, typer.Argument(help="An observation, or a result file of `vllm bench serve` or guidellm.")
    ],
    gpu: Annotated[str | None, typer.Option(help="Name or path of a hardware profile.")] = None,
    model: Annotated[str | None, typer.Option(help="Name in the zoo or path of a config.json.")] = None,
    system: Annotated[str | None, typer.Option(help="Serving system, see `sim systems`.")] = None,
    deployment: Annotated[
        Path | None, typer.Option("--deployment", "-c", help="YAML file; options override it.")
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", "--tp", help="GPUs per layer.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Format of the weights.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="Format of keys and values.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Running sequences at most.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens per step.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence, tokens.")] = None,
    num_gpu_blocks: Annotated[int | None, typer.Option(help="KV blocks.")] = None,
    enable_prefix_caching: Annotated[
        bool | None, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Share KV.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.csv and requests.csv.")] = None,
) -> None:
    """Simulate the requests of RECORDING as they were sent, and print where the simulation differs."""
    options = dict(locals())
    from calibrate.observe.prediction import predict_observation
    from calibrate.observe.result_files import read_recorded
    from simulator.cli.calibrate_host import stated_deployment
    from simulator.cli.calibrate_observe import cautions

    resolved = stated_deployment(options).resolve()
    observation = read_recorded(recording)
    prediction = predict_observation(observation, resolved)
    typer.echo(f"{resolved.title}; seen by {observation.header.source}, {observation.header.date}")
    for line in resolved.provenance:
        typer.echo(f"  {line}")
    _print(prediction)
    for line in [*prediction.result.warnings, *cautions(observation)]:
        typer.echo(f"warning: {line}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        prediction.metrics.to_csv(out / "metrics.csv", index=False)
        prediction.requests.to_csv(out / "requests.csv", index=False)
        typer.echo(f"wrote {out}/metrics.csv, requests.csv")


def _print(prediction: Prediction) -> None:
    from simulator.cli.calibrate_validate import print_agreement

    typer.echo(f"{'metric':12}{'statistic':11}{'seen':>12}{'simulator':>12}{'error':>9}")
    for name, statistic, seen, simulated, off in prediction.metrics.to_numpy(object).tolist():
        error = "" if off != off else f"{100 * off:+.1f} %"
        typer.echo(f"{name:12}{statistic:11}{seen:12.5g}{simulated:12.5g}{error:>9}")
    print_agreement(prediction)
