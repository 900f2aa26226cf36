"""What ``sim run --cluster`` reads and prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from simulator.cluster import ClusterResult, ClusterSpec
    from simulator.results import ClassRow
    from simulator.workload import Trace

__all__ = ["cluster_spec", "print_classes", "print_cluster", "print_header"]


def cluster_spec(file: Path, stated: dict[str, Any]) -> ClusterSpec:
    """The cluster *file*, its router overruled by ``--router``; other *stated* options contradict it."""
    from simulator.cluster import ClusterSpec
    from simulator.errors import ConfigurationError

    if given := [name for name in stated if name != "router"]:
        raise ConfigurationError(
            f"--{given[0].replace('_', '-')}: a cluster file states its pools' deployments itself"
        )
    spec = ClusterSpec.load(file)
    return spec.model_copy(update={"router": stated["router"]}) if "router" in stated else spec


def print_header(spec: ClusterSpec, trace: Trace) -> None:
    """What runs, and what the numbers rest on."""
    from simulator.cluster.resolve import resolve_pools

    for found in resolve_pools(spec):
        pool = found.pool
        typer.echo(f"{pool.name}: {pool.replicas} × ({found.resolved.title}), {pool.role}")
        for line in found.resolved.provenance:
            typer.echo(f"  {line}")
    typer.echo(f"router: {spec.router}")
    typer.echo(
        f"trace: {len(trace)} requests over {trace.duration:.1f} s, {trace.request_rate:.4g} requests/s"
    )


def print_cluster(result: ClusterResult) -> None:
    """Pools and cost below the table of all."""
    _print_pools(result)
    if result.num_retries:
        typer.echo(f"requests started again: {result.num_retries}")
    if result.bytes_transferred:
        typer.echo(
            f"KV transferred: {result.bytes_transferred / 1e9:.1f} GB, {result.mean_transfer_s * 1000:.1f} ms a request"
        )


def print_classes(rows: Sequence[ClassRow]) -> None:
    """One line per class, tenant and model, where the trace names some."""
    if len(rows) == 1:
        return
    typer.echo(
        f"{'class':<24}{'requests':>9}{'finished':>9}{'TTFT ms':>10}{'P99':>10}"
        f"{'TPOT ms':>9}{'P99':>9}{'met %':>8}{'good/s':>8}"
    )
    for row in rows:
        name = row.name if row.kind == "all" else f"{row.kind} {row.name}"
        met = "" if row.attainment is None else f"{100 * row.attainment:.1f}"
        good = "" if row.goodput is None else f"{row.goodput:.2f}"
        typer.echo(
            f"{name:<24}{row.requests:>9}{row.finished:>9}{row.mean_ttft_ms:>10.1f}{row.p99_ttft_ms:>10.1f}"
            f"{row.mean_tpot_ms:>9.2f}{row.p99_tpot_ms:>9.2f}{met:>8}{good:>8}"
        )


def _print_pools(result: ClusterResult) -> None:
    typer.echo(f"{'pool':<16}{'GPU':<18}{'started':>8}{'died':>6}{'GPU-hours':>11}{'$':>10}")
    for name in dict.fromkeys(line.pool for line in result.bills):
        lines = [line for line in result.bills if line.pool == name]
        died = sum(line.state == "dead" for line in lines)
        hours = math.fsum(line.gpu_hours for line in lines)
        usd = [line.usd for line in lines if line.usd is not None]
        cost = f"{math.fsum(usd):.2f}" if len(usd) == len(lines) else "?"
        typer.echo(f"{name:<16}{lines[0].gpu:<18}{len(lines):>8}{died:>6}{hours:>11.3f}{cost:>10}")
