"""What Streamlit remembers of a reader: the controls by name, and the variants that are pinned.

A control's value lives under ``view.<field>``. It is written back at every run, since Streamlit forgets the value of a
control that a page does not draw. The address of the page is kept equal to the view, so that it is the link.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import streamlit as st

from app.view import View
from simulator.errors import SimError

__all__ = ["MAX_PINS", "PENDING", "address", "chosen", "key", "pins", "publish", "restore", "set_pins"]

MAX_PINS = 4
PIN = "pin"
PENDING = "pending"
"""Choices that a control made for others; they take effect at the next run, before anything is drawn."""
FIELDS = tuple(View.model_fields)


def key(field: str) -> str:
    """Name under which the control of *field* keeps its value."""
    return f"view.{field}"


def restore() -> None:
    """Fill the controls: from the link when a reader comes, from themselves afterwards."""
    if "ready" in st.session_state:
        for field in FIELDS:
            st.session_state[key(field)] = st.session_state[key(field)]
        for field, value in st.session_state.pop(PENDING, {}).items():
            st.session_state[key(field)] = value
        return
    st.session_state["ready"] = True
    st.session_state["link_error"] = None
    given = {name: value for name, value in st.query_params.items() if name != PIN}
    try:
        view = View.of(given)
    except SimError as error:
        st.session_state["link_error"], view = str(error), View.of({})
    show(view)
    st.session_state["pins"] = []
    for text in st.query_params.get_all(PIN)[:MAX_PINS]:
        try:
            st.session_state["pins"].append(View.of(dict(parse_qsl(text))))
        except SimError as error:
            st.session_state["link_error"] = f"pinned variant: {error}"


def show(view: View) -> None:
    """Set every control to what *view* says; before the controls are drawn."""
    for field, value in view:
        st.session_state[key(field)] = value


def chosen() -> View:
    """The view the controls say. Raises `ConfigurationError`."""
    return View.of({field: st.session_state[key(field)] for field in FIELDS})


def pins() -> list[View]:
    """The pinned variants, oldest first."""
    return list(st.session_state["pins"])


def set_pins(views: list[View]) -> None:
    """Replace the pinned variants."""
    st.session_state["pins"] = views[:MAX_PINS]


def address(view: View) -> str:
    """The parameters of the link to *view*, as they stand in an address."""
    return urlencode(view.query)


def publish(view: View) -> None:
    """Make the address of the page the link to *view* and the pinned variants."""
    wanted: dict[str, str | list[str]] = dict(view.query)
    if pins():
        wanted[PIN] = [address(pin) for pin in pins()]
    now = {name: st.query_params.get_all(name) for name in st.query_params}
    if now != {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}:
        st.query_params.from_dict(wanted)
