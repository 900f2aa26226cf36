"""A dashboard that is started and waited for, and a Chromium to look at it; for the tests and the benchmark."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

__all__ = ["Server", "chromium", "dashboard"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get update && apt-get install --yes --no-install-recommends chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
)
STARTS_S = 60.0
POLL_S = 0.1


class Server(NamedTuple):
    """A running dashboard."""

    address: str
    pid: int


@contextmanager
def dashboard(
    sim: Sequence[str], folder: Path, *traces: object, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A dashboard started in *folder* by the command *sim*, at a free port; its log lies there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*sim, "dashboard", "--no-browser", "--port", str(port), *map(str, traces)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=env)
        try:
            _wait(f"http://127.0.0.1:{port}", process, folder / "log")
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            process.wait(20)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(POLL_S)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium without a window."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    assert path is not None, f"a Chromium is needed: {INSTALL}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()
