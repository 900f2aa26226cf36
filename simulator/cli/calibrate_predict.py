"""``sim calibrate predict``: an observed system held against its simulation, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.deployment_options import with_deployment
from simulator.cli.observed_deployment import Recording, observed_deployment

if TYPE_CHECKING:
    from calibrate.observe.prediction import Prediction

__all__ = ["predict"]


@with_deployment(simulated=False)
def predict(
    recording: Recording,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.csv and requests.csv.")] = None,
    stated: Any = None,
) -> None:
    """Simulate the requests of RECORDING as they were sent, and print where the simulation differs."""
    from calibrate.observe.prediction import predict_observation
    from calibrate.observe.result_files import read_recorded
    from simulator.cli.calibrate_observe import cautions

    resolved = observed_deployment(stated).resolve()
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
