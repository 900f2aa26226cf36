"""The roofline of a device with the operators of a step on it (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hwprofiles import HardwareProfile, Law
from simulator import Deployment
from simulator.results.figures import PALETTE
from simulator.steptime.laws import LawSet
from simulator.steptime.work import OperatorWork, step_work

__all__ = ["law_figure", "operators", "roofline_figure"]

SHAPES = ((4096, 4096), (14336, 4096))
"""(n, k) of the products drawn: those of an 8B model."""
INTENSITIES = np.logspace(-1, 4, 200)
"""FLOP per byte."""


def operators(model: str, gpu: str, batch: int, context: int, prompt: int) -> list[OperatorWork]:
    """What one GPU does in a step of *batch* decodes of *context* tokens and *prompt* tokens of prefill."""
    step = Deployment.of(model=model, gpu=gpu).resolve().steptime
    return step_work(step, batch, batch * context, [(prompt, 0)] if prompt else [])


def roofline_figure(profiles: Sequence[HardwareProfile], work: Sequence[Sequence[OperatorWork]]) -> go.Figure:
    """Attainable FLOP/s over FLOP per byte in 16 bits, and where each operator is by its law."""
    figure = go.Figure()
    for i, (profile, parts) in enumerate(zip(profiles, work, strict=True)):
        colour = PALETTE[i]
        peak = profile.peak_flops.get("bf16") or profile.peak_flops["fp16"]
        roof = np.minimum(INTENSITIES * profile.memory_bandwidth, peak)
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=INTENSITIES, y=roof / 1e12, mode="lines", line=line, name=profile.name)
        known = [part for part in parts if part.flops and part.bytes and part.seconds]
        figure.add_scatter(
            x=[part.flops / part.bytes for part in known],
            y=[part.flops / part.seconds / 1e12 for part in known],
            mode="markers",
            marker={"color": colour, "size": [9 + 24 * share for share in _shares(known)], "opacity": 0.75},
            text=[_hover(part) for part in known],
            hovertemplate="%{text}<extra></extra>",
            name=f"operators on {profile.name}",
        )
    figure.update_xaxes(type="log", dtick=1, title="FLOP per byte of memory traffic")
    figure.update_yaxes(type="log", dtick=1, title="TFLOP/s")
    return _placed(figure, 420)


def law_figure(profiles: Sequence[HardwareProfile]) -> go.Figure:
    """Time of a product over its number of tokens: the fitted law, and dotted what the datasheet allows."""
    figure, tokens = go.Figure(), np.unique(np.round(np.logspace(0, 4.2, 120)))
    for i, profile in enumerate(profiles):
        law = LawSet.from_profile(profile).bound("gemm", "bf16")
        band = next((block for block in profile.laws if block.key == ("gemm", "bf16", "")), None)
        for j, (n, k) in enumerate(SHAPES):
            colour, name = PALETTE[(2 * i + j) % len(PALETTE)], f"{profile.name}, {n} × {k}"
            shared: dict[str, Any] = {"mode": "lines", "name": name, "legendgroup": name}
            figure.add_scatter(x=tokens, y=law(tokens, n, k) * 1e6, line={"color": colour}, **shared)
            dotted = {"color": colour, "dash": "dot"}
            floor = law.floor(tokens, n, k) * 1e6
            if band is not None:
                _band(figure, band, tokens, law(tokens, n, k) * 1e6, colour)
            figure.add_scatter(x=tokens, y=floor, line=dotted, **shared, showlegend=False)
    figure.update_xaxes(type="log", dtick=1, title="tokens in the step")
    figure.update_yaxes(type="log", dtick=1, title="µs")
    return _placed(figure, 420)


def _band(figure: go.Figure, law: Law, tokens: Any, micros: Any, colour: str) -> None:
    """Where the middle 80 % of the held-out measurements lay, as far as the data reach."""
    low, high = law.range.get("m", (0.0, np.inf))
    inside = (tokens >= low) & (tokens <= high)
    if not law.quantiles or not inside.any():
        return
    x, y = tokens[inside], micros[inside]
    edges = [y * np.exp(law.quantiles[name]) for name in ("0.1", "0.9")]
    figure.add_scatter(
        x=np.concatenate((x, x[::-1])),
        y=np.concatenate((edges[0], edges[1][::-1])),
        fill="toself",
        line={"width": 0},
        fillcolor=colour,
        opacity=0.18,
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )


def _shares(parts: Sequence[OperatorWork]) -> list[float]:
    total = sum(part.seconds for part in parts)
    return [part.seconds / total for part in parts]


def _hover(part: OperatorWork) -> str:
    ideal = 100 * max(part.compute_s, part.memory_s) / part.seconds
    return (
        f"{part.name.replace('_', ' ')}<br>{part.seconds * 1e6:,.1f} µs, {ideal:.0f} % of its roofline"
        f"<br>bound by {part.bound}"
    )


def _placed(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height, margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"orientation": "h", "y": -0.2}
    )
    return figure
