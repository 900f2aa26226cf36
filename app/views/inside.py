"""Inside one run: the requests on a timeline, and what a slow one waited for."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from app import blockmap, charts, running, sidebar, timelines, work
from app.occupancy import MOST_REQUESTS, Occupancy
from app.view import View
from simulator import Result
from simulator.results.timeline import timeline

__all__ = ["page"]

WASTE = {
    "reserved": "set aside for tokens still to come",
    "internal": "unfilled part of blocks",
    "external": "free but too scattered to be used",
    "shared": "saved by sharing blocks",
}


def page() -> None:
    """Draw the page."""
    view = sidebar.controls()
    if view is None:
        return
    result = running.run(view)
    if result is None:
        return
    st.markdown("### Inside one run")
    st.caption(f"{result.resolved.title}. Choose a slow request, or click one in the timeline; drag to zoom.")
    left, right = st.columns(2)
    by = left.selectbox("Slowest by", [*timelines.RANKED, timelines.PREEMPTED], key="inside.by")
    slow = timelines.slowest(result, by)
    if not slow:
        st.warning("There is no such request.")
        return
    chosen = right.selectbox("Request", _options(slow), format_func=result.trace.name, key="inside.request")
    for line in timelines.story(result, chosen):
        st.markdown(f"- {line}")
    figure = timelines.lives_figure(result, list(timelines.around(result, chosen)), chosen)
    event = charts.draw(figure, "lives", on_select="rerun", selection_mode="points")
    _follow(event, chosen)
    _memory(view, result, chosen)
    _take_along(result)


def _options(slow: list[int]) -> list[int]:
    clicked = st.session_state.pop("inside.clicked", None)
    if clicked is not None:
        st.session_state["inside.request"] = clicked
    now = st.session_state.get("inside.request")
    if now is not None and now not in slow and clicked is None and "inside.own" not in st.session_state:
        st.session_state["inside.request"] = slow[0]
    own = st.session_state.get("inside.own")
    return slow if own is None or own in slow else [own, *slow]


def _follow(event: Any, chosen: int) -> None:
    """Make the request that was clicked the chosen one."""
    points = event["selection"]["points"] if event else []
    request = next((point["customdata"][0] for point in points if "customdata" in point), None)
    if request is not None and request != chosen and st.session_state.get("inside.own") != request:
        st.session_state["inside.own"] = st.session_state["inside.clicked"] = int(request)
        st.rerun()


def _memory(view: View, result: Result, chosen: int) -> None:
    st.markdown(
        "**KV cache**: which blocks are whose at one moment, who shares them, and what of them holds no token"
    )
    r, replica = result.records, max(int(result.records.replica[chosen]), 0)
    begin, end = float(r.first_scheduled_time[chosen]), float(r.finish_time[chosen])
    share = st.slider(
        "Moment of the request's life (%)", 0, 100, 50, 5, help="From first scheduled to last token."
    )
    moment = begin + max(share / 100 * (end - begin), 1e-6)
    before = int((r.arrival_time <= moment).sum())
    if before > MOST_REQUESTS:
        st.caption(
            f"The run is repeated up to the moment with numbered blocks, for at most {MOST_REQUESTS:,} arrivals; "
            f"here it would be {before:,}. Choose an earlier request, or shorter traffic."
        )
        seen = None
    else:
        seen = running.waited(lambda tick: work.occupancy_of(view, moment, replica, tick))
    if seen is not None:
        _blocks(seen, result.trace.name(chosen))
    capacity = result.resolved.num_gpu_blocks * result.resolved.budget.block_size
    rows = [
        {
            "kind": kind,
            "meaning": words,
            "now (tokens)": None if seen is None else round(seen.waste[kind]),
            "now (% of the cache)": None if seen is None else round(100 * seen.waste[kind] / capacity, 3),
            "run's average (% of the cache)": _percent(result, kind),
        }
        for kind, words in WASTE.items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def _blocks(seen: Occupancy, chosen: str) -> None:
    st.caption(
        f"At {seen.time:,.2f} s: {seen.used:,} of {seen.num_blocks:,} blocks of {seen.block_size} tokens are held, "
        f"{seen.cached:,} free ones can still be matched. Hover to see whose a block is."
    )
    if seen.tables is None:
        st.caption("This system's memory is not made of numbered blocks: only its totals are known.")
        return
    charts.draw(blockmap.figure(seen, chosen), "blocks")
    st.dataframe(blockmap.table(seen, chosen), hide_index=True, height=220)


def _percent(result: Result, kind: str) -> float | None:
    share = result.summary.values.get(f"fragmentation_{kind}")
    return None if share is None else round(100 * float(share), 3)


def _take_along(result: Result) -> None:
    st.download_button(
        "Timeline for Perfetto (JSON)",
        lambda: json.dumps(timeline(result.records, result.series)),
        "timeline.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        help="Opens in ui.perfetto.dev: the first 500 requests, every batch, counters of the whole run.",
    )
