"""What ``sim size --over-time`` prints."""

from __future__ import annotations

from typing import Any

__all__ = ["print_over_time"]


def print_over_time(found: dict[str, Any]) -> None:
    """Totals, then the intervals in which the number of GPUs changes."""
    from rich.table import Table

    from simulator.cli.console import console
    from simulator.sizing.report import OVER_TIME_HEADINGS, over_time_rows

    out, over = console(), found["over_time"]
    out.print(f"[bold]{found['headline']}[/]")
    out.print(found["subtitle"], highlight=False, markup=False)
    totals = Table(box=None, pad_edge=False, header_style="bold")
    totals.add_column("provisioning")
    for heading in OVER_TIME_HEADINGS[1:]:
        totals.add_column(heading, justify="right")
    for row in over_time_rows(over):
        totals.add_row(*row)
    out.print(totals)
    out.print(_intervals(over["intervals"]))
    for line in found["provenance"]:
        out.print(line, style="dim", highlight=False, markup=False)


def _intervals(intervals: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        title="\nWhen the number changes", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for heading in ("from, h", "requests/s", "plan", "replicas", "GPUs", "$/h"):
        table.add_column(heading, justify="left" if heading == "plan" else "right")
    before = None
    for one in intervals:
        if (one["name"], one["replicas"]) != before:
            rate, cost = f"{one['request_rate']:.2f}", f"{one['usd_per_hour']:.2f}"
            hour = f"{one['start_s'] / 3600:.2f}"
            table.add_row(hour, rate, one["name"], str(one["replicas"]), str(one["num_gpus"]), cost)
        before = (one["name"], one["replicas"])
    return table
