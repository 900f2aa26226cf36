"""One dashboard, started from an installed wheel as a user starts it, and one Chromium for all tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from .served import Server, chromium, dashboard

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "runs" / "screenshots"


PATIENCE_MS = 60_000
"""How long anything may take on a machine that is busy with other things."""


class Installation:
    """The wheel of this tree, installed into a folder of its own; this tree itself is out of reach."""

    def __init__(self, folder: Path) -> None:
        build = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(ROOT),
        ]
        subprocess.run(build, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        self.packages = folder / "packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(self.packages)]
        subprocess.run([*pip, str(wheel)], check=True)
        self.env = {**os.environ, "PYTHONPATH": str(self.packages)}

    def command(self, *words: object) -> list[str]:
        """``sim`` with these words."""
        return [sys.executable, str(self.packages / "bin" / "sim"), *map(str, words)]

    def run(self, folder: Path, *words: object) -> str:
        """What ``sim`` prints in *folder*."""
        done = subprocess.run(
            self.command(*words), cwd=folder, env=self.env, capture_output=True, text=True, check=True
        )
        return done.stdout


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Iterator[Server]:
    """A running dashboard, started where a folder called app lies in wait."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("raise ImportError('the wrong app')\n")
    trace = ROOT / "examples" / "sessions-500.jsonl"
    with dashboard(installation.command(), folder, trace, env=installation.env) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """Tabs share it, and with it what the browser has cached; to the dashboard each tab is another reader."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


def press(button: Locator) -> None:
    """Click without waiting for two frames alike, which a busy machine may take a minute to paint."""
    button.wait_for()
    button.evaluate("button => button.click()")


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
        self.page.locator("[data-testid=stMain] h3").first.wait_for()
        return self.settle()

    def settle(self) -> Page:
        """Wait until the script behind the page has run."""
        self.page.wait_for_timeout(250)
        idle = "[data-testid=stApp][data-test-script-state=notRunning]"
        self.page.locator(idle).wait_for(state="attached")
        return self.page

    def tile(self, label: str, part: str = ".value") -> str:
        """The number on the tile called *label*, or what stands below it."""
        return str(self.page.locator(".tile").filter(has_text=label).first.locator(part).inner_text()).strip()

    def tiles(self) -> list[str]:
        """The numbers on all tiles."""
        self.page.locator(".tile .value").first.wait_for()
        return [text.strip() for text in self.page.locator(".tile .value").all_inner_texts()]

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
def visit(window: BrowserContext, server: Server) -> Iterator[Any]:
    """Makes visitors; whatever they met is checked at the end."""
    visitors: list[Visitor] = []

    def arrive() -> Visitor:
        visitors.append(Visitor(window, server.address))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.check()
        visitor.page.close()
