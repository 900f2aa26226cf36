"""A simulation as a page sees it: a bar while it runs, a way to stop it, an error in words."""

from __future__ import annotations

import streamlit as st

from app import library, work
from app.view import View
from simulator import Result
from simulator.errors import SimError

__all__ = ["run"]

LONG = 4_000
"""Requests from which on a bar is worth its space."""


def run(view: View, name: str = "") -> Result | None:
    """The run of *view*, simulated now if nobody has asked before; None after an error, which is said after
    the *name* of what was run."""
    place = st.empty()
    try:
        trace = work.trace_of(view)
        if len(trace) < LONG and not view.intervals:
            return work.result_of(view)
        with place.container():
            bar = st.progress(0.0, text=f"Simulating {len(trace):,} requests …")
            st.button(
                "Stop", key=f"stop.{hash(view)}", on_click=_stop, args=(view,), icon=":material/stop_circle:"
            )
        if st.session_state.get("stopped") == view:
            place.warning("Stopped. Change something to simulate again.")
            return None
        result = work.result_of(view, lambda done: _tick(bar, done))
    except SimError as error:
        text = library.error_text(error)
        place.error(f"{name}: {text}" if name else text, icon=":material/error:")
        return None
    place.empty()
    return result


def _tick(bar: object, done: float) -> None:
    bar.progress(min(done, 1.0), text=f"{100 * done:.0f} % of the requests have left")  # type: ignore[attr-defined]


def _stop(view: View) -> None:
    st.session_state["stopped"] = view
