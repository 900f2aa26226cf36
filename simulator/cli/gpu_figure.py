"""The figure of ``sim gpus show``: laws as lines, rooflines dashed, measured points where the tables are
given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calibrate.tables import read_folder
from hwprofiles import HardwareProfile, load_profile
from simulator.errors import UnknownNameError
from simulator.steptime.laws import LawSet

__all__ = ["draw_laws"]

SHAPES = ((4096, 4096), (12288, 4096), (8192, 8192))
"""(n, k) of the products drawn."""
HEADS = (32, 8, 128)
"""Query heads, key-value heads and width of the attention drawn."""
COLOURS = ("#4269d0", "#efb118", "#ff725c")


def draw_laws(profile: HardwareProfile, data: Path | None, path: Path) -> None:
    """Write the figure of *profile* to *path*; *data* is a folder of tables, or none."""
    frames = {} if data is None else _own(read_folder(data), profile.name)
    titles = (
        "GEMM bf16",
        "decode attention, 32-8 heads",
        "prefill attention, 32-8 heads",
        "all-reduce, 8 GPUs",
    )
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles)
    laws = LawSet.from_profile(profile)
    _gemm(figure, laws, frames.get("gemm"))
    _decode(figure, laws, frames.get("decode_attention"))
    _prefill(figure, laws, frames.get("prefill_attention"))
    _all_reduce(figure, laws, frames.get("all_reduce"))
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", title="us")
    figure.update_layout(title=f"{profile.name}: {profile.provenance}", height=900)
    figure.write_html(path, include_plotlyjs=True)


def _own(frames: dict[str, pd.DataFrame], name: str) -> dict[str, pd.DataFrame]:
    """The rows of *frames* that were measured on the device *name*."""

    def mine(tag: str) -> bool:
        try:
            return load_profile(tag).name == name
        except UnknownNameError:
            return False

    return {family: frame[frame["gpu"].map(mine)] for family, frame in frames.items()}


def _add(
    figure: go.Figure, place: tuple[int, int], x: Any, law: Any, floor: Any, name: str, colour: str
) -> None:
    row, col = place
    figure.add_scatter(x=x, y=law * 1e6, name=name, line_color=colour, row=row, col=col)
    figure.add_scatter(
        x=x, y=floor * 1e6, line={"color": colour, "dash": "dot"}, name=f"{name} roofline", row=row, col=col
    )


def _points(
    figure: go.Figure, place: tuple[int, int], x: Any, rows: pd.DataFrame, name: str, colour: str
) -> None:
    row, col = place
    marker = {"color": colour, "size": 5}
    figure.add_scatter(
        x=x, y=rows["seconds"] * 1e6, mode="markers", marker=marker, name=f"{name} measured", row=row, col=col
    )


def _gemm(figure: go.Figure, laws: LawSet, frame: pd.DataFrame | None) -> None:
    law, tokens = laws.bound("gemm", "bf16"), np.unique(np.round(np.logspace(0, 4.2, 120)))
    for (n, k), colour in zip(SHAPES, COLOURS, strict=True):
        _add(figure, (1, 1), tokens, law(tokens, n, k), law.floor(tokens, n, k), f"{n} x {k}", colour)
        if frame is not None:
            rows = frame[(frame["dtype"] == "bf16") & (frame["n"] == n) & (frame["k"] == k)]
            _points(figure, (1, 1), rows["m"], rows, f"{n} x {k}", colour)


def _decode(figure: go.Figure, laws: LawSet, frame: pd.DataFrame | None) -> None:
    law, contexts = laws.bound("decode_attention", "bf16"), np.logspace(1, 5, 80)
    for batch, colour in zip((1.0, 32.0, 256.0), COLOURS, strict=True):
        arguments = (np.full_like(contexts, batch), batch * contexts, *HEADS)
        _add(figure, (1, 2), contexts, law(*arguments), law.floor(*arguments), f"batch {batch:g}", colour)
        if frame is not None:
            rows = _heads(frame[frame["num_seqs"] == batch])
            _points(figure, (1, 2), rows["sum_context"] / batch, rows, f"batch {batch:g}", colour)


def _prefill(figure: go.Figure, laws: LawSet, frame: pd.DataFrame | None) -> None:
    law, chunks = laws.bound("prefill_attention", "bf16"), np.round(np.logspace(1, 4.2, 80))
    for batch, colour in zip((1.0, 4.0, 16.0), COLOURS, strict=True):
        arguments = (chunks, np.zeros_like(chunks), *HEADS, batch)
        _add(figure, (2, 1), chunks, law(*arguments), law.floor(*arguments), f"{batch:g} prompts", colour)
        if frame is not None:
            rows = _heads(frame[frame["num_seqs"] == batch])
            _points(figure, (2, 1), rows["chunk"], rows, f"{batch:g} prompts", colour)


def _all_reduce(figure: go.Figure, laws: LawSet, frame: pd.DataFrame | None) -> None:
    sizes = np.logspace(3, 8.5, 80)
    for variant, colour in zip(("custom", "nccl"), COLOURS, strict=False):
        law = laws.bound("all_reduce", "bf16", variant)
        _add(figure, (2, 2), sizes, law(sizes, 8), law.floor(sizes, 8), variant, colour)
        if frame is not None:
            rows = frame[(frame["variant"] == variant) & (frame["num_gpus"] == 8)]
            _points(figure, (2, 2), rows["message"], rows, variant, colour)


def _heads(frame: pd.DataFrame) -> pd.DataFrame:
    n_q, n_kv, head_dim = HEADS
    same = (frame["n_q"] == n_q) & (frame["n_kv"] == n_kv) & (frame["head_dim"] == head_dim)
    return frame[same & (frame["dtype"] == "bf16")]
