"""Measured serving runs beside what is predicted for them: ``sim validate serving``, run as a reader would run it.

The bundled figures are a small sample of published ones, each with its source; a reader may bring measurements of
their own in the same columns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from app import diagonal
from app.processes import Tick
from simulator.errors import ConfigurationError
from simulator.results.figures import PALETTE

__all__ = ["bundled_figures", "figure", "predictions", "summary"]

SIM = "from simulator.cli import main; main()"
UNITS = {"throughput": "tok/s", "request_throughput": "req/s"}


def bundled_figures() -> str:
    """Path of the published figures that come with the program."""
    with as_file(files("simulator.steptime") / "data" / "reference.csv") as path:
        return str(path)


def predictions(path: str, tick: Tick) -> pd.DataFrame:
    """One row per measured value of the file at *path*. Raises `ConfigurationError` with the command's own words."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.csv"
        command = [sys.executable, "-P", "-c", SIM, "validate", "serving", path, "--rows", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not rows.exists():
            words = (done.stderr.strip() or done.stdout.strip() or "nothing was predicted").splitlines()
            raise ConfigurationError(words[-1].removeprefix("sim: error: "))
        return pd.read_csv(rows)


def figure(rows: pd.DataFrame) -> go.Figure:
    """Predicted over measured, both logarithmic; the diagonal is a perfect prediction."""
    drawn = diagonal.plane([*rows["measured"], *rows["predicted"]])
    for i, ((system, gpu), part) in enumerate(rows.groupby(["system", "gpu"])):
        drawn.add_scatter(
            x=part["measured"],
            y=part["predicted"],
            mode="markers",
            name=f"{system}, {gpu}",
            marker={"color": PALETTE[i % len(PALETTE)], "size": 9, "opacity": 0.85},
            text=part["label"] + "<br>" + part["metric"] + (100 * part["ape"]).map(": {:.1f} % off".format),
            hovertemplate="%{text}<br>measured %{x:,.4g}, predicted %{y:,.4g}<extra></extra>",
        )
    drawn.update_xaxes(title="measured")
    drawn.update_yaxes(title="predicted")
    return drawn


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors by system, GPU and metric, percent."""
    grouped: Any = rows.groupby(["system", "gpu", "metric"])["ape"]
    table = grouped.agg(["count", "mean", "median", "max"]).reset_index()
    table[["mean", "median", "max"]] = (100 * table[["mean", "median", "max"]]).round(1)
    names = {"count": "figures", "mean": "mean (%)", "median": "median (%)", "max": "worst (%)"}
    return pd.DataFrame(table.rename(columns=names))
