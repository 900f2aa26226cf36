"""``sim dashboard``: the what-if dashboard in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["dashboard"]

THEME = {
    "theme.light.primaryColor": "#2f6fde",
    "theme.dark.primaryColor": "#6f9df0",
    "theme.baseFontSize": "14",
    "theme.metricValueFontSize": "1.45rem",
    "theme.headingFontSizes": "1.9rem,1.5rem,1.2rem",
    "theme.showSidebarBorder": "true",
}
MAX_UPLOAD_MB = 100


def dashboard(
    traces: Annotated[
        list[Path] | None, typer.Argument(metavar="[TRACE]...", help="Traces to offer.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65_535)] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to listen at; other than loopback needs a proxy.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Explore what the command line can do, live, in a browser."""
    import os
    import sys

    _check_streamlit()
    _check_port(host, port)
    for trace in traces or ():
        _check_trace(trace)
    settings = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": str(no_browser).lower(),
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": str(MAX_UPLOAD_MB),
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        **THEME,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    # -P: a folder called app where the reader stands must not stand in for ours.
    command = [sys.executable, "-P", "-m", "app", *flags, "--"]
    os.execv(sys.executable, [*command, *(str(trace.absolute()) for trace in traces or ())])


def _check_streamlit() -> None:
    from importlib.util import find_spec

    from simulator.errors import ConfigurationError

    if find_spec("streamlit") is None:
        raise ConfigurationError("the dashboard needs streamlit: pip install 'servesim[app]'")


def _check_port(host: str, port: int) -> None:
    import socket

    from simulator.errors import ConfigurationError

    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None


def _check_trace(path: Path) -> None:
    from simulator.errors import InputError

    if not path.is_file():
        raise InputError(path, "cannot be read: no such file")
