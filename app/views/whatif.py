"""What if: change anything, see at once what users and hardware would notice, keep variants and compare them."""

from __future__ import annotations

import streamlit as st

from app import charts, library, pinned, running, sidebar, state, terminal, tiles, work
from app.view import View
from hwprofiles import load_profile
from simulator import Result
from simulator.breakdown import request_parts
from simulator.results.figures import breakdown_figure, latency_figure, timeline_figure

__all__ = ["page"]

PARTS = LATENCY, OVER_TIME, WHERE, _ = ("Latency", "Over time", "Where the time goes", "What it rests on")


def page() -> None:
    """Draw the page."""
    view = sidebar.controls()
    if view is None:
        return
    result = running.run(view)
    if result is None:
        return
    _header(view, result)
    tiles.draw_verdicts(result)
    base = state.pins()[0] if state.pins() else None
    tiles.draw_tiles(result, None if base in (None, view) else pinned.result(base))
    _warnings(result)
    pinned.draw(view)
    _parts(view, result)
    _share(view)


def _parts(view: View, result: Result) -> None:
    """One part of the result: a figure costs as much as a short simulation.

    No tabs: Streamlit's walk through all that a figure is made of whenever it changes, to see what takes the focus.
    """
    part = st.segmented_control(
        "Part of the result", PARTS, default=PARTS[0], required=True, key="part", label_visibility="collapsed"
    )
    if part == LATENCY:
        st.caption(
            "Share of requests (for ITL: of all gaps between tokens) within a time; dotted: the objective."
        )
        charts.draw(latency_figure(result.summary, charts.TEMPLATE), "latency", roomy=True)
    elif part == OVER_TIME:
        st.caption("Averages over equal intervals of the run.")
        charts.draw(timeline_figure(result.summary, charts.TEMPLATE), "over_time", roomy=True)
    elif part == WHERE:
        _where(view, result)
    else:
        _rests(result)


def _header(view: View, result: Result) -> None:
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.markdown(f"### {result.resolved.title}")
    left.caption(f"{_traffic(result)} · {_cost(view, result)}")
    full = len(state.pins()) >= state.MAX_PINS
    right.button(
        "Pin",
        icon=":material/push_pin:",
        on_click=pinned.pin,
        args=(view,),
        disabled=full or view in state.pins(),
        help=f"Keep this variant to compare with, at most {state.MAX_PINS}.",
        width="stretch",
    )


def _traffic(result: Result) -> str:
    trace, s = result.trace, result.summary
    rate = "all at once" if trace.request_rate == float("inf") else f"{trace.request_rate:.2f} requests/s"
    return (
        f"{len(trace):,} requests, {rate}, prompts {trace.input_length.mean():,.0f} and outputs "
        f"{trace.output_length.mean():,.0f} tokens on average · {s['completed']:,} finished in {s['duration']:,.0f} s"
    )


def _cost(view: View, result: Result) -> str:
    price = load_profile(result.resolved.profile.name).price_per_hour if ":" not in view.gpu else None
    gpus = result.resolved.num_gpus
    words = f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"
    tokens = float(result.summary["output_throughput"] or 0.0)
    if price is None or not tokens:
        return words
    per_million = price * gpus / (tokens * 3600 / 1e6)
    return f"{words}, \\${price * gpus:,.2f}/h, \\${per_million:,.2f} per million output tokens at this load"


def _warnings(result: Result) -> None:
    if result.warnings:
        st.warning("  \n".join(map(library.plain, result.warnings)), icon=":material/warning:")


def _where(view: View, result: Result) -> None:
    parts = request_parts(result)
    if parts:
        st.caption("A finished request, on average: what its end-to-end time is made of.")
        charts.draw(
            charts.stacked_figure({"request": {k: v * 1000 for k, v in parts.items()}}, "ms"), "parts"
        )
    seconds = work.breakdown_of(view)
    if seconds:
        st.caption("The GPU's iterations by operator family, estimated from a sample of the run's steps.")
        charts.draw(breakdown_figure(seconds, charts.TEMPLATE), "breakdown")


def _rests(result: Result) -> None:
    st.markdown("\n".join(f"- {library.plain(line)}" for line in result.resolved.provenance))
    st.caption(f"Chosen for you: {library.plain('; '.join(result.resolved.chosen))}")


def _share(view: View) -> None:
    st.divider()
    left, right = st.columns([3, 2])
    with left:
        st.markdown("**The same in the terminal**")
        terminal.draw(view.commands)
    with right:
        st.markdown("**Take it along**")
        st.caption("The address of this page is the link to this view.")
        with st.container(horizontal=True):
            st.download_button(
                "Report (HTML)",
                lambda: work.report_of(view),
                "report.html",
                "text/html",
                icon=":material/description:",
                on_click="ignore",
            )
            st.download_button(
                "Deployment (YAML)",
                view.deployment_yaml(),
                "deployment.yaml",
                "application/yaml",
                icon=":material/settings:",
                on_click="ignore",
            )
