"""The script that Streamlit runs: pages, and the link that brought the reader here."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Draw the page that the address names."""
    _forget_folder()
    import streamlit as st

    from app import state
    from app.views import hardware, inside, size, systems, validation, whatif

    st.set_page_config(page_title="servesim", page_icon=str(files("app") / "icon.svg"), layout="wide")
    st.html(files("app") / "style.css")
    state.restore()
    pages = [
        st.Page(whatif.page, title="What if", icon=":material/tune:", url_path="what-if", default=True),
        st.Page(size.page, title="Size it", icon=":material/payments:", url_path="size"),
        st.Page(inside.page, title="Inside one run", icon=":material/view_timeline:", url_path="inside"),
        st.Page(systems.page, title="Systems", icon=":material/compare_arrows:", url_path="systems"),
        st.Page(hardware.page, title="Hardware", icon=":material/memory:", url_path="hardware"),
        st.Page(validation.page, title="Validation", icon=":material/fact_check:", url_path="validation"),
    ]
    st.navigation(pages, position="top").run()


def _forget_folder() -> None:
    """Streamlit puts this folder first on the path, where our modules would stand in for others of the same name."""
    here = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path != here]


if __name__ == "__main__":  # other processes import this script, too; for them it is empty
    main()
