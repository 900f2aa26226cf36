"""A field for a file: limited in size, read by the importer of its kind before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from app import library, state
from hwprofiles import load_profile
from simulator.errors import SimError
from simulator.models import load_model
from simulator.sizing import Prices

__all__ = ["upload"]

CHECKS: dict[str, Callable[[str], Any]] = {"model": load_model, "gpu": load_profile, "prices": Prices.load}
"""What must accept a file before it is offered; traces and measurements are read where they are used."""


def upload(kind: library.Kind, label: str, help: str, place: str) -> None:
    """Draw the field; a file that can be read becomes what is chosen."""
    seen = f"seen.{place}.{kind}"
    file = st.file_uploader(
        label, key=f"upload.{place}.{kind}", help=help, max_upload_size=library.LIMITS_MB[kind]
    )
    if file is None or st.session_state.get(seen) == file.file_id:
        return
    try:
        stored = library.store(kind, file.name, file.getvalue())
        if kind in CHECKS:
            CHECKS[kind](library.path_of(stored))
    except SimError as error:
        st.error(library.error_text(error))
        return
    st.session_state[seen] = file.file_id
    st.session_state[state.PENDING] = {"source" if kind == "trace" else kind: stored}
    st.rerun()
