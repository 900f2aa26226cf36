"""``sim gpus``: the devices there are, and what is known of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hwprofiles import HardwareProfile, Law

__all__ = ["app"]

app = typer.Typer(help="List the hardware profiles, or show one.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def gpus(context: typer.Context) -> None:
    """List the hardware profiles: datasheet, price, and how many of the laws are fitted."""
    if context.invoked_subcommand is None:
        _print_list()


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name, alias or path of a profile.")],
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw laws against the roofline into this HTML file.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of measured tables, to draw the points too.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole profile as JSON.")] = False,
) -> None:
    """Show a profile: datasheet, laws with source, range, date and error, and laws against the roofline."""
    from hwprofiles import load_profile
    from simulator.errors import ConfigurationError

    if data is not None and plot is None:
        raise ConfigurationError(f"--data {data}: its points are drawn with --plot FILE")
    profile = load_profile(name)
    if as_json:
        typer.echo(json.dumps(profile.model_dump(mode="json"), indent=1))
        return
    _print_datasheet(profile)
    _print_laws(profile.laws)
    _print_curves(profile)
    if plot is not None:
        from simulator.cli.gpu_figure import draw_laws

        draw_laws(profile, data, plot)
        typer.echo(f"wrote {plot}")


def _print_list() -> None:
    from rich.table import Table

    from hwprofiles import list_profiles, load_profile
    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "aliases"):
        table.add_column(heading)
    for heading in ("bf16 TFLOP/s", "memory GB", "TB/s", "link GB/s", "$/h"):
        table.add_column(heading, justify="right")
    table.add_column("laws")
    for name in list_profiles():
        table.add_row(*_list_row(load_profile(name)))
    console().print(table)


def _list_row(profile: HardwareProfile) -> list[str]:
    peak = profile.peak_flops.get("bf16", profile.peak_flops.get("fp16", 0.0))
    price = "-" if profile.price_per_hour is None else f"{profile.price_per_hour:.2f}"
    fitted = sum(law.source.kind in ("fitted", "measured") for law in profile.laws)
    laws = f"{fitted} fitted" if fitted else f"scaled from {profile.relative}"
    numbers = [
        peak / 1e12,
        profile.memory_bytes / 1e9,
        profile.memory_bandwidth / 1e12,
        profile.link_bandwidth / 1e9,
    ]
    texts = [f"{numbers[0]:.0f}", f"{numbers[1]:.0f}", f"{numbers[2]:.2f}", f"{numbers[3]:.0f}"]
    return [profile.name, ", ".join(profile.aliases), *texts, price, laws]


def _print_datasheet(profile: HardwareProfile) -> None:
    sheet, host = profile.datasheet, profile.host
    also = f"; also: {', '.join(profile.aliases)}" if profile.aliases else ""
    typer.echo(f"{profile.name} ({_maker(profile)}){also}")
    peaks = ", ".join(f"{dtype} {value / 1e12:.4g}" for dtype, value in sheet.peak_flops.items())
    typer.echo(f"  peak       {peaks} TFLOP/s dense")
    typer.echo(f"  memory     {profile.memory_bytes / 1e9:.1f} GB visible, {_rate(sheet.memory_bandwidth)}")
    typer.echo(f"  chip       {_chip(profile)}")
    typer.echo(f"  links      {_links(profile)}")
    if sheet.price is not None:
        dated = sheet.price.date or "no date"
        typer.echo(f"  price      ${sheet.price.usd_per_hour:g}/h ({dated}: {sheet.price.source})")
    typer.echo(f"  source     {sheet.source}")
    typer.echo(f"  confidence {sheet.confidence}")
    for note in sheet.notes:
        typer.echo(f"  note       {note}")
    cost = f"{host.per_step_s * 1e6:g} us per step" if host.per_step_s else "not measured"
    typer.echo(f"  host       {cost} ({host.source.kind}: {host.source.text})")
    for costs in profile.serving:
        typer.echo(f"  observed   {costs.system}: {costs.text()}")
    typer.echo(f"  {profile.provenance}")
    _print_calibration(profile)


def _maker(profile: HardwareProfile) -> str:
    if profile.vendor == "unknown":
        return f"{profile.architecture}, without a datasheet"
    return f"{profile.vendor} {profile.architecture}"


def _chip(profile: HardwareProfile) -> str:
    """What is known of it."""
    sheet = profile.datasheet
    parts = [f"{sheet.num_sms} {'cores' if profile.architecture == 'cpu' else 'SMs'}"]
    parts += [] if sheet.l2_bytes is None else [f"L2 {sheet.l2_bytes / 2**20:g} MiB"]
    parts += [] if sheet.tdp_watts is None else [f"{sheet.tdp_watts:g} W"]
    return ", ".join(parts)


def _links(profile: HardwareProfile) -> str:
    sheet = profile.datasheet
    peer, copies = sheet.nvlink_bandwidth, _rate(sheet.pcie_bandwidth)
    if profile.architecture == "cpu":
        between = "not measured" if peer is None else _rate(peer)
        return f"between ranks {between}, copies in memory {copies}, one direction"
    bridge = f" between two cards by a bridge ({sheet.nvlink_bridge})" if sheet.nvlink_bridge else ""
    between = "no NVLink" if peer is None else f"NVLink {_rate(peer)}{bridge}"
    return f"{between}, PCIe {copies}, one direction; interconnect {profile.interconnect} unless stated"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e12:.3g} TB/s" if bytes_per_s >= 1e12 else f"{bytes_per_s / 1e9:.3g} GB/s"


def _print_calibration(profile: HardwareProfile) -> None:
    """Where and with what the laws were measured, and what they were worth on runs that the fit has not seen."""
    if profile.measured_on:
        versions = ", ".join(f"{name} {version}" for name, version in profile.software.items())
        typer.echo(f"  calibrated {profile.measured_on}; fit {profile.version}; {versions}")
    if profile.raw_data_digest:
        typer.echo(f"  samples    sha256 {profile.raw_data_digest}")
    if profile.validation:
        typer.echo(f"  steps      {profile.validation}")
    for run in profile.end_to_end:
        alike = "same decisions" if run.same_decisions else "other decisions"
        typer.echo(f"  end to end {run.text()}; {run.clock}, {alike}")
    if not profile.end_to_end:
        typer.echo("  end to end not validated: see `sim calibrate validate`")


def _print_laws(laws: list[Law]) -> None:
    from rich.table import Table

    from simulator.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("law", "kind", "held-out error", "knots", "coefficients", "range", "date", "source"):
        table.add_column(heading)
    for law in sorted(laws, key=lambda law: (law.source.kind not in ("fitted", "measured"), law.key)):
        error = (
            "-" if law.held_out is None else f"{100 * law.held_out.mean_ape:.1f} % ({law.held_out.rows} rows)"
        )
        numbers = " ".join(f"{name}={value:.3g}" for name, value in law.coefficients.items())
        span = " ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in law.range.items())
        knots = str(len(law.residual.values)) if law.residual else "-"
        name = "/".join(filter(None, law.key))
        table.add_row(
            name, law.source.kind, error, knots, numbers, span, law.source.date or "-", law.source.text
        )
    console().print(table)


CURVES = (("gemm bf16 4096x4096", 4096, 4096), ("gemm bf16 14336x4096", 14336, 4096))
WIDTH = 40
"""Characters of a bar that stands for the whole roofline."""


def _print_curves(profile: HardwareProfile) -> None:
    """Share of the roofline that a product reaches, over the number of tokens."""
    from simulator.steptime.laws import LawSet

    law = LawSet.from_profile(profile).bound("gemm", "bf16")
    for title, n, k in CURVES:
        typer.echo(f"{title}: law against its roofline")
        for exponent in range(0, 15, 2):
            m = 2**exponent
            seconds, floor = float(law(m, n, k)), float(law.floor(m, n, k))
            bar = "#" * round(WIDTH * floor / seconds)
            typer.echo(f"  m {m:6d} {seconds * 1e6:9.1f} us |{bar:<{WIDTH}}| {100 * floor / seconds:3.0f} %")
