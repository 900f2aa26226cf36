"""A recorded run of the engine beside its simulation: errors, distributions, drift, and which steps are off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.report.figures import laid_out, line, markers, percent
from calibrate.report.html import figure_section, table, write_page
from calibrate.step_errors import summarize_steps, worst_part
from calibrate.validation import HEADLINE, LATENCIES, Comparison
from simulator.results.figures import PALETTE
from simulator.results.report import lines, section

__all__ = ["validation_sections", "write_validation_report"]

UNITS = dict.fromkeys((*LATENCIES, "itl", "duration"), ", s") | {"throughput": ", tokens/s"}
NAMES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2el": "End to end"}
ENGINE, SIMULATOR = PALETTE[0], PALETTE[1]
FOOTER = (
    "Engine: measured on the device. Simulator: predicted from the profile with the same policy and limits."
)


def write_validation_report(comparisons: Mapping[str, Comparison], path: Path, title: str) -> Path:
    """One page for recorded runs, by name."""
    sections = [
        part
        for name, comparison in comparisons.items()
        for part in validation_sections(comparison, name if len(comparisons) > 1 else "")
    ]
    if len(comparisons) > 1:
        sections.insert(0, section("All runs", table(summary_table(comparisons))))
    return write_page(path, title, "; ".join(map(subtitle, comparisons.values())), sections, FOOTER)


def summary_table(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """The headline errors of every run, as text."""
    return pd.DataFrame(
        [
            {
                "run": name,
                "requests": str(len(comparison.recording["requests"])),
                **{f"{metric} {part}": percent(comparison.error(metric, part)) for metric, part in HEADLINE},
            }
            for name, comparison in comparisons.items()
        ]
    )


def subtitle(comparison: Comparison) -> str:
    """What was run, in a sentence."""
    recording = comparison.recording
    return (
        f"{recording['model']} under {recording['system']} on {recording['device']}: "
        f"{len(recording['requests'])} requests, {len(recording['steps'])} steps, clock {recording['clock']}"
    )


def validation_sections(comparison: Comparison, heading: str = "") -> list[str]:
    """The boxes of the page; *heading* goes before each title."""
    lead = f"{heading}: " if heading else ""
    figures = (
        ("Distributions", "Share of requests within a time.", distribution_figure(comparison)),
        ("Over time", "Batch and KV blocks, step by step.", timeline_figure(comparison)),
        ("Drift", "How much later the simulator ends each request, by arrival.", drift_figure(comparison)),
        ("Steps", "Measured and predicted seconds of the recorded batches.", step_figure(comparison)),
    )
    return [
        section(f"{lead}Errors", table(metric_table(comparison)) + table(agreement_table(comparison))),
        section(f"{lead}Where it is off", lines([worst_part(comparison.steps), comparison.same.text()], "")),
        *(figure_section(lead + title, note, figure) for title, note, figure in figures),
        section(f"{lead}Steps by kind and batch size", table(step_table(comparison))),
    ]


def metric_table(comparison: Comparison) -> pd.DataFrame:
    """The errors as text."""
    frame = comparison.metrics
    return pd.DataFrame(
        {
            "metric": frame["metric"] + " " + frame["statistic"] + frame["metric"].map(UNITS).fillna(""),
            "engine": frame["measured"].map("{:,.5g}".format),
            "simulator": frame["simulated"].map("{:,.5g}".format),
            "error": frame["error"].map(percent),
        }
    )


def agreement_table(comparison: Comparison) -> pd.DataFrame:
    """Request by request, as text."""
    frame = comparison.agreement()
    return pd.DataFrame(
        {
            "request by request": frame["metric"],
            "median |error|": frame["median"].map("{:.1%}".format),
            "p90 |error|": frame["p90"].map("{:.1%}".format),
            "distance of distributions": frame["distance"].map("{:.3f}".format),
        }
    )


def step_table(comparison: Comparison) -> pd.DataFrame:
    """Steps by kind, then by kind and batch size, as text."""
    return pd.DataFrame(
        [
            {
                "kind": row["kind"],
                "rows": row["rows"],
                "steps": f"{row['count']:.0f}",
                "engine, s": f"{row['measured']:.4f}",
                "predicted": f"{row['predicted']:.4f}",
                "error": percent(row["error"]),
                "device": f"{row['device']:.4f}",
                "operators": f"{row['operators']:.4f}",
                "host": f"{row['host']:.4f}",
                "host predicted": f"{row['host_predicted']:.4f}",
            }
            for row in summarize_steps(comparison.steps).to_dict("records")
        ]
    )


# figures


def distribution_figure(comparison: Comparison) -> Any:
    """Cumulative shares of the engine's and the simulator's requests."""
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(LATENCIES), subplot_titles=[NAMES[name] for name in LATENCIES])
    for column, name in enumerate(LATENCIES, start=1):
        for who, colour, key in (("engine", ENGINE, name), ("simulator", SIMULATOR, f"{name}_simulated")):
            values = np.sort(comparison.requests[key].dropna().to_numpy(float)) * 1e3
            share = 100 * np.arange(1, len(values) + 1) / max(1, len(values))
            figure.add_trace(line(values, share, who, colour, first=column == 1), row=1, col=column)
        figure.update_xaxes(title_text="ms", row=1, col=column)
    figure.update_yaxes(ticksuffix=" %", rangemode="tozero")
    return laid_out(figure, 380)


def timeline_figure(comparison: Comparison) -> Any:
    """Batch size and KV blocks over time on both sides."""
    from plotly.subplots import make_subplots

    steps, series = pd.DataFrame(comparison.recording["steps"]), comparison.result.timeseries
    figure = make_subplots(2, 1, shared_xaxes=True, subplot_titles=["Batch, requests", "KV, blocks"])
    pairs = (("batch", "num_running"), ("blocks_used", "kv_blocks_used"))
    for row, (measured, simulated) in enumerate(pairs, start=1):
        ours = line(steps["start"], steps[measured], "engine", ENGINE, first=row == 1)
        theirs = line(series["time"], series[simulated], "simulator", SIMULATOR, first=row == 1)
        for trace in (ours, theirs):
            trace["line"]["shape"] = "hv"
            figure.add_trace(trace, row=row, col=1)
    figure.update_xaxes(title_text="s", row=2, col=1)
    return laid_out(figure, 460)


def drift_figure(comparison: Comparison) -> Any:
    """Simulated less measured end of every request, over its arrival."""
    import plotly.graph_objects as go

    frame = comparison.requests
    behind = (frame["e2el_simulated"] - frame["e2el"]) * 1e3
    figure = go.Figure(markers(frame["arrival"], behind, "request", ENGINE))
    figure.add_hline(y=0, line_dash="dot")
    figure.update_xaxes(title_text="arrival, s")
    figure.update_yaxes(title_text="simulator later by, ms")
    return laid_out(figure, 320, legend=False)


def step_figure(comparison: Comparison) -> Any:
    """Predicted over measured seconds of every recorded step, by kind."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, (kind, steps) in enumerate(comparison.steps.groupby("kind")):
        figure.add_trace(markers(steps["seconds"] * 1e3, steps["predicted"] * 1e3, str(kind), PALETTE[place]))
    ends = np.array([comparison.steps["seconds"].min(), comparison.steps["seconds"].max()]) * 1e3
    figure.add_trace(line(ends, ends, "equal", "#9aa5b4"))
    figure.update_xaxes(type="log", title_text="measured, ms")
    figure.update_yaxes(type="log", title_text="predicted, ms")
    return laid_out(figure, 420)
