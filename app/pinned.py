"""Variants that a reader keeps, side by side, with what changed and why."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts, library, state, work
from app.tiles import WORTH_A_COLOUR
from app.view import View
from simulator import Result
from simulator.comparison import Row, compare, explain
from simulator.errors import SimError

__all__ = ["draw", "label", "pin", "result", "table"]

BETTER_HIGHER = ("req/s", "tok/s")
NEUTRAL = ("requests finished", "KV usage mean", "batch size mean", "prefix cache hits")


def pin(view: View) -> None:
    """Keep *view*."""
    state.set_pins([*state.pins(), view])


def result(view: View) -> Result | None:
    """The run of a pinned variant; None where it cannot be simulated any more."""
    try:
        return work.result_of(view)
    except SimError as error:
        st.error(f"pinned variant: {library.error_text(error)}")
        return None


def draw(view: View) -> None:
    """The comparison, if anything is pinned."""
    views = state.pins()
    if not views:
        return
    if view not in views:
        views.append(view)
    results = {label(v, views[0], i): found for i, v in enumerate(views) if (found := result(v)) is not None}
    with st.container(border=True):
        _head(view)
        if len(results) < 2:
            st.caption("One variant is pinned. Change something, and the two stand side by side here.")
            return
        try:
            rows = compare(list(results.values()))
        except SimError as error:
            st.error(library.error_text(error))
            return
        st.dataframe(table(rows, list(results)), hide_index=True, width="stretch", height="content")
        left, right = st.columns(2)
        with left:
            charts.draw(charts.cdf_figure(results, "ttft", "TTFT"), "compare_ttft")
        with right:
            charts.draw(charts.cdf_figure(results, "tpot", "TPOT"), "compare_tpot")
        _why(results)


def _head(view: View) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.markdown("**Pinned variants**")
    right.button("Clear", on_click=state.set_pins, args=([],), icon=":material/delete:", width="stretch")


def label(view: View, first: View, index: int) -> str:
    """A letter and what sets the variant apart from the first."""
    letter = "ABCDE"[index]
    if view == first:
        gpus = view.tensor_parallel_size * view.pipeline_parallel_size * view.num_replicas
        return (
            f"{letter} {library.title_of(view.model)}, {gpus} × {library.title_of(view.gpu)}, {view.system}"
        )
    differing = [name for name in View.model_fields if getattr(view, name) != getattr(first, name)]
    return f"{letter} {', '.join(_difference(view, name) for name in differing)}"


def _difference(view: View, name: str) -> str:
    value = getattr(view, name)
    return f"{name.replace('_', ' ')} {library.title_of(str(value)) if value not in ('', 0) else 'default'}"


def table(rows: list[Row], names: list[str]) -> Any:
    """Numbers of all variants with the change against the first; better is green, worse is red."""
    shown, colours = [], []
    for row in rows:
        cells = [_cell(value, change) for value, change in zip(row.values, row.changes, strict=True)]
        shown.append([f"{row.name} ({row.unit})" if row.unit else row.name, *cells])
        colours.append(["", *(_colour(row, change) for change in row.changes)])
    frame = pd.DataFrame(shown, columns=["", *names])
    return frame.style.apply(lambda _: pd.DataFrame(colours, columns=frame.columns), axis=None)


def _cell(value: float | None, change: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return text if not change else f"{text}  ({100 * change:+.1f} %)"


def _colour(row: Row, change: float | None) -> str:
    if not change or abs(change) < WORTH_A_COLOUR or row.name in NEUTRAL:
        return ""
    better = (change > 0) == (row.unit in BETTER_HIGHER)
    return "color: #2a9d72; font-weight: 600" if better else "color: #d0574e; font-weight: 600"


def _why(results: dict[str, Result]) -> None:
    names = list(results)
    causes = explain(results[names[0]], results[names[-1]])[:6]
    total = sum(cause.change for cause in causes)
    if not causes or not abs(total) > 0:
        return
    with st.expander(
        f"Why: mean end-to-end time of {names[-1][:1]} against {names[0][:1]}", icon=":material/help:"
    ):
        for cause in causes:
            st.markdown(f"- **{1000 * cause.change:+,.1f} ms** {cause.name}")
        st.caption(
            "Waiting is counted; decode and prefill are shared out by what the iterations were made of."
        )
