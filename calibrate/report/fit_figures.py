"""Roofline, fitted against measured, and residuals of the operators that were measured."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from calibrate.report.figures import laid_out, line, markers
from simulator.results.figures import PALETTE
from simulator.steptime.law_gemm import gemm_bytes, gemm_flops
from simulator.steptime.measured_points import SIZE

__all__ = ["Frames", "fitted_figure", "residual_figure", "roofline"]

Frames = dict[str, pd.DataFrame]
"""Samples by operator family, with ``fitted`` seconds."""


def roofline(frames: Frames, meta: dict[str, Any]) -> Any:
    """FLOP/s over FLOP/byte of products and attention, with the ceilings that this device reached."""
    import plotly.graph_objects as go

    figure, ceilings = go.Figure(), meta["ceilings"]
    intensity = np.geomspace(0.1, 1e4, 60)
    roof = np.minimum(ceilings["gemm_flops_per_s"], intensity * ceilings["copy_bytes_per_s"])
    figure.add_trace(line(intensity, roof, "copy and large product", "#6b7a90"))
    colours = iter(PALETTE)
    for family, frame in frames.items():
        flops, moved = work(family, frame)
        if flops is not None:
            rate = flops / frame["seconds"].to_numpy(float)
            figure.add_trace(markers(flops / moved, rate, family.replace("_", " "), next(colours)))
    figure.update_xaxes(type="log", title_text="FLOP per byte")
    figure.update_yaxes(type="log", title_text="FLOP/s")
    return laid_out(figure, 460)


def work(family: str, frame: pd.DataFrame) -> tuple[Any, Any]:
    """(FLOPs, bytes) of every row; (None, None) of kernels that only move."""
    column = {name: frame[name].to_numpy(float) for name in frame.columns if frame[name].dtype.kind == "f"}
    if family == "gemm":
        m, n, k = column["m"], column["n"], column["k"]
        return gemm_flops(m, n, k), gemm_bytes(m, n, k, "bf16")
    if family == "decode_attention":
        total = column["sum_context"] * column["head_dim"]
        return 4.0 * column["n_q"] * total, 4.0 * column["n_kv"] * total
    if family == "prefill_attention":
        keys, new = column["context"] + (column["chunk"] + 1) / 2, column["num_seqs"] * column["chunk"]
        flops = 4.0 * column["n_q"] * column["head_dim"] * new * keys
        held = column["num_seqs"] * (column["context"] + column["chunk"]) * column["n_kv"]
        return flops, 4.0 * column["head_dim"] * (held + new * column["n_q"])
    return None, None


def fitted_figure(frames: Frames) -> Any:
    """Fitted over measured time, one panel per operator."""
    figure, places = _panels(frames)
    for (family, frame), place, colour in zip(frames.items(), places, cycle(PALETTE)):
        measured, fitted = frame["seconds"] * 1e6, frame["fitted"] * 1e6
        ends = np.array([measured.min(), measured.max()])
        figure.add_trace(line(ends, ends, "equal", "#9aa5b4"), **place)
        figure.add_trace(markers(measured, fitted, family, colour), **place)
    figure.update_xaxes(type="log", title_text="measured, µs")
    figure.update_yaxes(type="log")
    return laid_out(figure, 320 * _rows(len(frames)), legend=False)


def residual_figure(frames: Frames) -> Any:
    """Measured / fitted - 1 over the size of the shape, one panel per operator."""
    figure, places = _panels(frames)
    for (family, frame), place, colour in zip(frames.items(), places, cycle(PALETTE)):
        size, unit = SIZE.get(family, ("seconds", "s"))
        off = 100 * (frame["seconds"] / frame["fitted"] - 1)
        figure.add_trace(markers(frame[size], off, family, colour), **place)
        figure.add_hline(y=0, line_dash="dot", **place)
        figure.update_xaxes(title_text=unit, **place)
    figure.update_xaxes(type="log")
    figure.update_yaxes(ticksuffix=" %")
    return laid_out(figure, 320 * _rows(len(frames)), legend=False)


def _panels(frames: Frames) -> tuple[Any, list[dict[str, int]]]:
    from plotly.subplots import make_subplots

    rows = _rows(len(frames))
    titles = [family.replace("_", " ") for family in frames]
    figure = make_subplots(
        rows, 3, subplot_titles=titles, vertical_spacing=0.28 / rows, horizontal_spacing=0.08
    )
    return figure, [{"row": i // 3 + 1, "col": i % 3 + 1} for i in range(len(frames))]


def _rows(count: int) -> int:
    return max(1, -(-count // 3))
