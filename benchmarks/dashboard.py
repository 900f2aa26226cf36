"""Seconds from moving a slider of the dashboard to the new result on the screen, in Chromium.

    python benchmarks/dashboard.py [--num-prompts 10000] [--moves 15] [--readers 10]

Starts ``sim dashboard`` as a reader would, opens it, and presses an arrow key on the slider of the request rate again
and again. A move ends when the tiles and the figure of the new simulation are drawn and the script behind the page
has stopped; every rate is new, so nothing comes from a cache. With ``--readers`` as many tabs move at the same moment,
each to a rate of its own, and the slowest counts.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
)
WATCH = """rate => {
    const captions = () => [...document.querySelectorAll('[data-testid=stCaptionContainer]')]
        .map(caption => caption.innerText).filter(text => text.includes(' finished in ')).join();
    const before = captions(), begin = performance.now();
    window.took = null;
    const shown = () => captions() && captions() !== before
        && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
        && document.querySelector('.js-plotly-plot .main-svg')
        && location.search.includes(rate);
    const timer = setInterval(() => {
        if (shown()) { window.took = (performance.now() - begin) / 1000; clearInterval(timer) }
    }, 10);
}"""
"""Notes how long it takes until another run's caption stands there, with a figure and a script that has stopped."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=15)
    parser.add_argument("--readers", type=int, default=0)
    arguments = parser.parse_args()
    with dashboard() as address, window() as context:
        page = context.new_page()
        print(f"first page       {first_page(page, address):5.2f} s")
        seconds = moves(page, address, arguments.num_prompts, arguments.moves)
        print(f"slider to result {statistics.median(seconds):5.2f} s, median of {len(seconds)} moves", end="")
        print(f" ({min(seconds):.2f} to {max(seconds):.2f}), {arguments.num_prompts:,} requests")
        if arguments.readers:
            waits = together(context, address, arguments.num_prompts, arguments.readers)
            print(
                f"{arguments.readers} readers at once {max(waits):5.2f} s, median {statistics.median(waits):.2f} s"
            )


@contextmanager
def dashboard() -> Iterator[str]:
    """Address of a dashboard of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sim = Path(sys.executable).with_name("sim")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        command = [sim, "dashboard", "--no-browser", "--port", str(port)]
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def _wait(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            time.sleep(0.25)
    raise SystemExit(f"no answer from {address}")


@contextmanager
def window() -> Iterator[BrowserContext]:
    """A Chromium without its own cache."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        raise SystemExit("needs a Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser.new_context(viewport={"width": 1280, "height": 900})
        browser.close()


def first_page(page: Page, address: str) -> float:
    """From typing the address to the first result, s."""
    begin = time.perf_counter()
    _open(page, address)
    return time.perf_counter() - begin


def moves(page: Page, address: str, num_prompts: int, number: int) -> list[float]:
    """One time per move, s."""
    _open(page, f"{address}/?num_prompts={num_prompts}&burstiness=1.05")
    seconds = []
    for i in range(number):
        page.wait_for_timeout(300)
        _begin_move(page, f"{5.6 + 0.1 * i:g}")
        seconds.append(_took(page))
    return seconds


def together(window: BrowserContext, address: str, num_prompts: int, number: int) -> list[float]:
    """One time per reader when all move at once, s."""
    pages = [window.new_page() for _ in range(number)]
    for i, page in enumerate(pages):
        _open(page, f"{address}/?num_prompts={num_prompts}&seed={i + 1}")
    for page in pages:
        _begin_move(page, "5.6")
    return [_took(page) for page in pages]


def _open(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text(" finished in ").wait_for(timeout=60_000)
    page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=60_000)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(state="attached")


def _begin_move(page: Page, rate: str) -> None:
    slider = page.get_by_role("slider", name="Requests per second")
    slider.focus()
    page.evaluate(WATCH, f"request_rate={rate}")
    slider.press("ArrowRight")


def _took(page: Page) -> float:
    page.wait_for_function("window.took", timeout=60_000)
    return float(page.evaluate("window.took"))


if __name__ == "__main__":
    main()
