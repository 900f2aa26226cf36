"""``sim calibrate fit-links``: from published runs to what a ring over PCIe reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["fit_links"]


def fit_links(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Published results (CSV).")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many cases of a file, evenly spaced.")
    ] = None,
) -> None:
    """Print the share of the PCIe rate that a ring of several GPUs reaches, and how far off it leaves the runs.

    Errors are those of (GPU, system, model) groups predicted with the share of the other groups. The law over PCIe in
    hwprofiles/defaults.py holds what is printed.
    """
    from calibrate.fit.links import fit_links as fit
    from calibrate.fit.links import pcie_cases
    from calibrate.serving import read_cases, thin

    cases = [case for path in files for case in thin(pcie_cases(read_cases(path).cases), limit)]
    found = fit(cases)
    sizes = ", ".join(f"{share:.2f} with {gpus}" for gpus, share in found.by_gpus.items())
    typer.echo(f"a ring over PCIe reaches {found.share:.2f} of the PCIe rate (4.0 at most); by GPUs: {sizes}")
    typer.echo(f"{'held out':24}{'GPUs':>6}{'rows':>6}{'mean %':>8}{'median %':>10}")
    for (gpu, gpus), rows in found.errors.groupby(["gpu", "gpus"], sort=True):
        size = 100 * rows["held_out"].abs()
        typer.echo(f"{gpu:24}{gpus:6}{len(rows):6}{size.mean():8.1f}{size.median():10.1f}")
