"""``sim calibrate fit-host``: host costs and KV cache of a system in production, from what a client saw of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.deployment_options import with_deployment
from simulator.cli.observed_deployment import Recording, observed_deployment

if TYPE_CHECKING:
    from calibrate.fit.host import HostFit
    from calibrate.observe.observation import Observation

__all__ = ["fit_host"]


@with_deployment(simulated=False)
def fit_host(
    recording: Recording,
    out: Annotated[Path, typer.Option(help="Profile to write (.yaml); use it as --gpu FILE.")],
    hold_out: Annotated[
        float, typer.Option(help="Share of the requests, the last, that is not fitted to.")
    ] = 0.3,
    stated: Any = None,
) -> None:
    """Fit a system's host costs, and take its KV cache, from RECORDING; the device's laws stay as they are.

    State the deployment as it ran. The error on the last part of the recording is printed and kept in the profile.
    """
    from calibrate.fit.host import fit_host_costs
    from calibrate.fit.host_profile import write_host_profile
    from calibrate.observe.result_files import read_recorded

    described = observed_deployment(stated)
    observation = read_recorded(recording)
    fit = fit_host_costs(observation, described, hold_out)
    write_host_profile(fit, observation, described.gpu, out)
    _report(fit, observation)
    typer.echo(f"written to {out}: use it as --gpu {_as_path(out)}")


def _as_path(out: Path) -> str:
    return str(out) if out.parent != Path() else f"./{out}"


def _report(fit: HostFit, observation: Observation) -> None:
    from simulator.cli.calibrate_observe import cautions

    header, own, errors = observation.header, fit.own, fit.standard_errors
    typer.echo(
        f"{fit.resolved.title}; {header.source}, {header.date}, server {header.server or 'not stated'}"
    )
    typer.echo(f"  {fit.num_fitted} requests fitted, the last {fit.num_held_out} held out")
    off = {name: f" ± {scale * errors[name]:.2g}" if name in errors else "" for name, scale in SCALES.items()}
    typer.echo(
        f"  per step      {1e3 * fit.step_s:.4g}{off['step_s']} ms (the system's own: {1e3 * own[0]:.4g})"
    )
    why = "  not told apart: batches too alike" if fit.seq_fixed else ""
    typer.echo(
        f"  per sequence  {1e6 * fit.seq_s:.4g}{off['seq_s']} us (the system's own: {1e6 * own[1]:.4g}){why}"
    )
    typer.echo(f"  front end     {1e3 * fit.request_s:.4g} ms per request, on top of the simulated TTFT")
    typer.echo(f"  KV cache      {_cache(fit)}")
    typer.echo(f"{'held out':14}{'seen ms':>12}{'before':>10}{'fitted':>10}")
    for name, seen in fit.seen.items():
        before, after = (f"{100 * errors[name]:+.1f} %" for errors in (fit.before, fit.after))
        typer.echo(f"{name:14}{1e3 * seen:12.2f}{before:>10}{after:>10}")
    if fit.too_slow > TOO_SLOW:
        typer.echo(
            f"warning: steps are {100 * fit.too_slow:.0f} % too long even without host costs: the device's laws are "
            "off for this server, or the deployment is not as stated"
        )
    for line in cautions(observation):
        typer.echo(f"warning: {line}")


SCALES = {"step_s": 1e3, "seq_s": 1e6}
TOO_SLOW = 0.03


def _cache(fit: HostFit) -> str:
    if fit.kv is None:
        return "not seen; the system's rule stays"
    spread = f" ± {100 * fit.kv.spread:.1f} %" if fit.kv.spread else ""
    return f"{fit.kv.tokens} tokens{spread}, {fit.kv.source}"
