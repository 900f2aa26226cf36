"""What a reader of the dashboard waits for, in Chromium, and whose CPU seconds that is.

    python benchmarks/dashboard.py [--num-prompts 10000] [--moves 15] [--readers 10]

Starts ``sim dashboard`` as a reader would and opens it: *first page* is from the address to the figure of the first
result. Then it presses an arrow key on the slider of the request rate again and again. A move ends with the frame in
which the caption and the figure of the new simulation stand and the script behind the page has stopped; every rate is
new, so nothing comes from a cache. With ``--readers`` as many tabs, each with a sample of traffic of its own, are
brought forward one by one and then move at the same moment; the slowest counts.

Beside each wait stand the CPU seconds of the server, of the processes that simulate for it and of Chromium, which
here shares the machine with them, and what the server sent: files over HTTP and messages over the WebSocket.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from playwright.sync_api import BrowserContext, Page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from served import Server, chromium, dashboard

WAIT_MS = 120_000
WATCH = """rate => {
    const app = document.querySelector('[data-testid=stApp]');
    const caption = () => [...document.querySelectorAll('[data-testid=stCaptionContainer]')]
        .map(caption => caption.textContent).find(text => text.includes(' finished in '));
    const figure = () => document.querySelector('.js-plotly-plot .main-svg');
    const before = caption();
    let begin;
    addEventListener('keydown', () => begin = performance.now(), {once: true, capture: true});
    window.moved = new Promise(resolve => new MutationObserver((_, observer) => {
        const stopped = app.dataset.testScriptState === 'notRunning';
        if (!stopped || !figure() || (caption() ?? before) === before || !location.search.includes(rate)) return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve((performance.now() - begin) / 1000)));
    }).observe(app, {attributes: true, attributeFilter: ['data-test-script-state'], childList: true, subtree: true,
        characterData: true}));
}"""
"""Notes how long it takes from a key to another run's caption, with a figure and a script that has stopped."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=15)
    parser.add_argument("--readers", type=int, default=0)
    arguments = parser.parse_args()
    sim = [str(Path(sys.executable).with_name("sim"))]
    with tempfile.TemporaryDirectory() as folder, dashboard(sim, Path(folder)) as server, _window() as window:
        meter = Meter(server)
        page = meter.watch(window.new_page())
        with meter.over("first page"):
            seconds = _timed(lambda: _open(page, server.address))
        print(f"first page       {seconds:5.2f} s")
        taken = moves(page, server.address, arguments.num_prompts, arguments.moves, meter)
        print(f"slider to result {statistics.median(taken):5.2f} s, median of {len(taken)} moves", end="")
        print(f" ({min(taken):.2f} to {max(taken):.2f}), {arguments.num_prompts:,} requests")
        if arguments.readers:
            waits = together(window, server.address, arguments.num_prompts, arguments.readers, meter)
            print(f"{arguments.readers} readers at once {max(waits):5.2f} s", end="")
            print(f", median {statistics.median(waits):.2f} s")
        print(meter.table(), end="")


@contextmanager
def _window() -> Iterator[BrowserContext]:
    """A browser that has cached nothing."""
    with chromium() as browser:
        yield browser.new_context(viewport={"width": 1280, "height": 900})


@dataclass
class Meter:
    """CPU seconds by whose they are, and bytes sent, over named stretches."""

    server: Server
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=lambda: {"HTTP (kB)": 0.0, "WebSocket (kB)": 0.0})

    def watch(self, page: Page) -> Page:
        """Count what *page* is sent from now on."""
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.on("Network.loadingFinished", lambda e: self._count("HTTP (kB)", e["encodedDataLength"]))
        network.on("Network.webSocketFrameReceived", lambda e: self._count("WebSocket (kB)", _frame(e)))
        return page

    def _count(self, name: str, size: float) -> None:
        self.sent[name] += size / 1000

    @contextmanager
    def over(self, name: str, times: int = 1) -> Iterator[None]:
        """Note a stretch that is done *times* over, per time."""
        before = self._now()
        yield
        after = self._now()
        self.rows[name] = {key: (value - before[key]) / times for key, value in after.items()}

    def _now(self) -> dict[str, float]:
        server = psutil.Process(self.server.pid)
        seconds = {"server": _cpu([server]), "its processes": _cpu(server.children(recursive=True))}
        ours = psutil.Process().children(recursive=True)
        seconds["Chromium"] = _cpu([one for one in ours if "chrom" in one.name()])
        return {f"{name} (CPU s)": value for name, value in seconds.items()} | self.sent

    def table(self) -> str:
        """One line per stretch."""
        names = list(next(iter(self.rows.values())))
        lines = [f"{'':16s}" + "".join(f"{name:>22s}" for name in names)]
        for stretch, row in self.rows.items():
            lines.append(f"{stretch:16s}" + "".join(f"{row[name]:22,.2f}" for name in names))
        return "\n".join(lines) + "\n"


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _frame(event: dict[str, dict[str, object]]) -> int:
    return (
        len(str(event["response"]["payloadData"])) * 3 // 4
    )  # base64, as a frame of protocol buffers is binary


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def moves(page: Page, address: str, num_prompts: int, number: int, meter: Meter) -> list[float]:
    """One time per move, s."""
    _open(page, f"{address}/?num_prompts={num_prompts}&burstiness=1.05")
    seconds = []
    with meter.over("a move", number):
        for i in range(number):
            page.wait_for_timeout(300)
            _prepare_move(page, f"{5.6 + 0.1 * i:g}")
            page.keyboard.press("ArrowRight")
            seconds.append(_took(page))
    return seconds


def together(
    window: BrowserContext, address: str, num_prompts: int, number: int, meter: Meter
) -> list[float]:
    """One time per reader when all move at once, s."""
    pages = [meter.watch(window.new_page()) for _ in range(number)]
    for i, page in enumerate(pages):
        _open(page, f"{address}/?num_prompts={num_prompts}&seed={i + 1}")
        _prepare_move(page, "5.6")
    with meter.over(f"{number} readers"):
        for page in pages:
            page.keyboard.press("ArrowRight")
        return [_took(page) for page in pages]


def _open(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text(" finished in ").wait_for(timeout=WAIT_MS)
    page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=WAIT_MS)
    idle = "[data-testid=stApp][data-test-script-state=notRunning]"
    page.locator(idle).wait_for(state="attached", timeout=WAIT_MS)


def _prepare_move(page: Page, rate: str) -> None:
    page.get_by_role("slider", name="Requests per second").focus()
    page.evaluate(WATCH, f"request_rate={rate}")


def _took(page: Page) -> float:
    page.set_default_timeout(WAIT_MS)
    return float(page.evaluate("window.moved"))


if __name__ == "__main__":
    main()
