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

WORTH_A_BAR_S = 0.8
"""Seconds after which a bar is worth its space."""
STEP_S = 0.4
"""Seconds between two drawings of it: each makes the browser draw the page anew."""


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
        self.place, self.view = place, view
        self.next = time.monotonic() + WORTH_A_BAR_S
        self.bar: Any = None
        self.shown = ""

    def draw(self, done: float) -> None:
        """Often called, seldom seen."""
        _leave_if_asked()
        if time.monotonic() < self.next or self.shown == _words(done):
            return
        self.next, self.shown = time.monotonic() + STEP_S, _words(done)
        if self.bar is None:
            self._begin()
        self.bar.progress(done, text=self.shown)

    def _begin(self) -> None:
        name = "" if self.view is None else hash(self.view)
        with self.place.container(key=f"waiting.{name}"):
            self.bar = st.progress(0.0)
            if self.view is not None:
                stop = {"on_click": _stop, "args": (self.view,), "icon": ":material/stop_circle:"}
                st.button("Stop", key=f"stop.{name}", **stop)


def _leave_if_asked() -> None:
    """A script whose reader has gone on to something else ends here: wherever it looks at the session's state."""
    st.session_state.get("stopped")


def _words(done: float) -> str:
    return f"{100 * done:.0f} % done" if done else "Under way …"


def _stop(view: View) -> None:
    st.session_state["stopped"] = view
