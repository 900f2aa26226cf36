"""Controls that are fields of the view: bounds from the field, the value in the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from app import library
from app.state import key
from app.view import SYSTEM, View

__all__ = ["folded", "number", "select", "slider", "switch"]


def folded(label: str, draw: Callable[..., None], *args: Any) -> None:
    """What *draw* draws, behind *label*: only while it is open, as a browser spends as long on what it hides."""
    fold = st.expander(label, key=f"fold.{label}", on_change="rerun")
    if fold.open:
        with fold:
            draw(*args)


def switch(field: str, label: str, help: str) -> None:
    """On, off, or what the system does."""
    st.segmented_control(label, [SYSTEM, "on", "off"], key=key(field), required=True, help=help)


def slider(field: str, label: str, low: float, high: float, step: float, help: str) -> None:
    now = float(st.session_state[key(field)])
    st.slider(label, min(low, now), max(high, now), step=step, key=key(field), help=help)


def number(field: str, label: str, help: str, step: float = 1) -> None:
    whole = View.model_fields[field].annotation is int
    bounds = {type(m).__name__: m for m in View.model_fields[field].metadata}
    low, high = bounds["Ge"].ge, bounds["Le"].le if "Le" in bounds else None
    kind: Any = int if whole else float
    st.number_input(
        label,
        min_value=kind(low),
        max_value=None if high is None else kind(high),
        step=kind(step),
        format=None if whole else "%g",
        key=key(field),
        help=help or None,
    )


def select(field: str, label: str, names: list[str], help: str) -> None:
    now = st.session_state[key(field)]
    names = names if now in names else [*names, now]
    st.selectbox(label, names, format_func=library.title_of, key=key(field), help=help)
