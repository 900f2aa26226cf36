"""``python -m app``: Streamlit with the dashboard's script, and what its first page needs under way meanwhile."""

from __future__ import annotations

import sys
import threading
from importlib.resources import files

__all__ = ["main"]


def main() -> None:
    """Serve until stopped; the arguments are Streamlit's settings, ``--`` and the traces to offer."""
    from app import library, processes

    end = sys.argv.index("--")
    library.offer(sys.argv[end + 1 :])
    processes.start_all("app.work")  # they import while this one does
    # Plotly looks into a pandas that another thread is half through importing: all of it first, then the thread.
    import pandas  # noqa: F401
    from streamlit.web.cli import main as streamlit

    threading.Thread(target=_prepare, daemon=True).start()
    sys.argv = ["streamlit", "run", str(files("app") / "main.py"), *sys.argv[1:end]]
    try:
        streamlit(prog_name="streamlit")
    finally:
        processes.stop_all()


def _prepare() -> None:
    """Have the first page's result under way."""
    from app import work
    from app.view import View

    work.result_of(View.of({}))


if __name__ == "__main__":
    main()
