"""One dashboard, started as a user starts it, and one Chromium for all tests of this folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SIM = Path(sys.executable).with_name("sim")
SCREENSHOTS = ROOT / "runs" / "screenshots"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
)
INSTALL = "apt-get update && apt-get install --yes --no-install-recommends chromium"


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running dashboard, started where a folder called app lies in wait."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("raise ImportError('the wrong app')\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("wb")
    command = [
        SIM,
        "dashboard",
        "--no-browser",
        "--port",
        str(port),
        ROOT / "examples" / "sessions-500.jsonl",
    ]
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next(filter(None, found), None)
    if path is None:
        pytest.fail(f"the browser tests need a Chromium: {INSTALL}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """Tabs share it, and with it what the browser has cached; to the dashboard each tab is another reader."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


class Visitor:
    """A reader with a tab of their own, who notices every error of the page."""

    def __init__(self, window: BrowserContext, address: str) -> None:
        self.address = address
        self.page: Page = window.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)

    def _note(self, message: Any) -> None:
        # Under the address of a page Streamlit first looks for its own server there, and is told 404.
        probe = "/_stcore/" in message.location.get("url", "")
        if message.type == "error" and not probe:
            self.errors.append(message.text)

    def open(self, path: str = "") -> Page:
        """Go to a page and wait until it is drawn."""
        self.page.goto(f"{self.address}/{path}")
        self.page.locator("[data-testid=stMain] h3").first.wait_for(timeout=30_000)
        return self.settle()

    def settle(self) -> Page:
        """Wait until the script behind the page has run."""
        self.page.wait_for_timeout(250)
        idle = "[data-testid=stApp][data-test-script-state=notRunning]"
        self.page.locator(idle).wait_for(state="attached", timeout=30_000)
        return self.page

    def tile(self, label: str) -> str:
        """The number on the tile called *label*."""
        tile = self.page.get_by_test_id("stMetric").filter(has_text=label).first
        return str(tile.get_by_test_id("stMetricValue").inner_text()).strip()

    def tiles(self) -> list[str]:
        """The numbers on all tiles."""
        self.page.get_by_test_id("stMetricValue").first.wait_for(timeout=20_000)
        return [text.strip() for text in self.page.get_by_test_id("stMetricValue").all_inner_texts()]

    def check(self) -> None:
        """Nothing went wrong so far."""
        assert self.page.get_by_test_id("stException").count() == 0
        assert self.errors == []

    def picture(self, name: str) -> None:
        """Write a screenshot of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        height = self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        self.page.set_viewport_size(
            {"width": self.page.viewport_size["width"], "height": min(height + 20, 3000)}
        )
        self.page.wait_for_timeout(700)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def visit(window: BrowserContext, dashboard: str) -> Iterator[Any]:
    """Makes visitors; whatever they met is checked at the end."""
    visitors: list[Visitor] = []

    def arrive() -> Visitor:
        visitors.append(Visitor(window, dashboard))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.check()
        visitor.page.close()
