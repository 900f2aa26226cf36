"""A simulation as a page sees it: a bar while it runs, a way to stop it, an error in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from app import library, work
from app.processes import Tick
from app.view import View
from simulator import Result
from simulator.errors import SimError

__all__ = ["run", "waited"]

Value = TypeVar("Value")

WORTH_A_BAR_S = 0.4
"""Seconds after which a bar is worth its space."""


def run(view: View, name: str = "") -> Result | None:
    """The run of *view*, simulated now if nobody has asked before; None after an error, which is said after
    the *name* of what was run."""
    place = st.empty()
    try:
        if st.session_state.get("stopped") == view:
            place.warning("Stopped. Change something to simulate again.")
            return None
        if not name:
            st.session_state.pop("stopped", None)  # something else is asked: coming back will simulate
        result = work.result_of(view, _Bar(place, view).draw)
    except SimError as error:
        text = library.error_text(error)
        place.error(f"{name}: {text}" if name else text, icon=":material/error:")
        return None
    place.empty()
    return result


def waited(ask: Callable[[Tick], Value]) -> Value | None:
    """What *ask* answers, with a bar meanwhile; None after an error, which is said."""
    place = st.empty()
    try:
        answer = ask(_Bar(place).draw)
    except SimError as error:
        place.error(library.error_text(error), icon=":material/error:")
        return None
    place.empty()
    return answer


class _Bar:
    """Drawn once the reader has waited for a moment; with a button where there is a *view* to stop."""

    def __init__(self, place: Any, view: View | None = None) -> None:
        self.place, self.view, self.begin = place, view, time.monotonic()
        self.bar: Any = None

    def draw(self, done: float) -> None:
        if self.bar is None and time.monotonic() - self.begin > WORTH_A_BAR_S:
            with self.place.container():
                self.bar = st.progress(0.0)
                if self.view is not None:
                    key, view = f"stop.{hash(self.view)}", self.view
                    st.button("Stop", key=key, on_click=_stop, args=(view,), icon=":material/stop_circle:")
        if self.bar is not None:
            self.bar.progress(done, text=_words(done))


def _words(done: float) -> str:
    return f"{100 * done:.0f} % done" if done else "Under way …"


def _stop(view: View) -> None:
    st.session_state["stopped"] = view
