"""``sim calibrate predict``: an observed system held against its simulation, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.observed_deployment import (
    DeploymentFile,
    Dtype,
    Gpu,
    KvCacheDtype,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    Model,
    NumGpuBlocks,
    PrefixCaching,
    Recording,
    System,
    TensorParallelSize,
    stated_deployment,
)

if TYPE_CHECKING:
    from calibrate.observe.prediction import Prediction

__all__ = ["predict"]


def predict(
    recording: Recording,
    gpu: Gpu = None,
    model: Model = None,
    system: System = None,
    deployment: DeploymentFile = None,
    tensor_parallel_size: TensorParallelSize = None,
    dtype: Dtype = None,
    kv_cache_dtype: KvCacheDtype = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    max_model_len: MaxModelLen = None,
    num_gpu_blocks: NumGpuBlocks = None,
    enable_prefix_caching: PrefixCaching = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.csv and requests.csv.")] = None,
) -> None:
    """Simulate the requests of RECORDING as they were sent, and print where the simulation differs."""
    options = dict(locals())
    from calibrate.observe.prediction import predict_observation
    from calibrate.observe.result_files import read_recorded
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
