"""The dashboard in a real browser: pages, controls, uploads, links, and the same numbers everywhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app import work
from app.view import View
from simulator import Deployment, read_trace, simulate
from simulator.results.tiles import scaled_time

from .conftest import PATIENCE_MS, press

SMALL = "num_prompts=200"
PAGES = {
    "": "llama-3.1-8b on 1 × h100-sxm-80gb",
    "inside": "Inside one run",
    "systems": "Systems",
    "hardware": "Hardware",
    "validation": "Validation",
}
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""


@pytest.mark.parametrize("path", PAGES)
def test_every_page_loads(visit, path):
    visitor = visit()
    page = visitor.open(f"{path}?{SMALL}" if path else f"?{SMALL}")
    assert PAGES[path] in page.locator("h3").all_inner_texts()[-1]
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    visitor.picture(path or "what-if")


def test_a_slower_gpu_shows_in_the_right_numbers_and_the_keyboard_moves_a_slider(visit):
    visitor = visit()
    page = visitor.open(f"?{SMALL}")
    before = {name: visitor.tile(name) for name in ("TPOT, median", "KV usage, peak", "Prefix cache hits")}
    page.get_by_role("combobox", name="GPU", exact=True).fill("l40s")
    page.keyboard.press("Enter")
    page.locator("h3", has_text="l40s-48gb").wait_for()
    visitor.settle()
    after = {name: float(visitor.tile(name).split()[0]) for name in before}
    assert after["TPOT, median"] > 2 * float(before["TPOT, median"].split()[0])  # a quarter of the bandwidth
    assert after["KV usage, peak"] > float(before["KV usage, peak"].split()[0])
    assert after["Prefix cache hits"] == float(before["Prefix cache hits"].split()[0])
    assert "gpu=l40s-48gb" in page.url
    page.get_by_role("slider", name="Requests per second").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**request_rate=5.6*")


def test_intervals_stand_under_the_numbers(visit):
    visitor = visit()
    visitor.open("?num_prompts=50&intervals=true")
    text = visitor.tile("TPOT, median", ".context")
    low, high = (float(part) for part in re.search(r"90%: ([\d.]+) – ([\d.]+) ms", text).groups())
    assert low < float(visitor.tile("TPOT, median").split()[0]) < high


def test_the_copied_command_and_python_say_the_same(visit, installation, tmp_path):
    visitor = visit()
    page = visitor.open("?num_prompts=300&burstiness=0.5&gpu=a100-sxm-80gb&max_num_seqs=64&num_prefixes=3")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(page.get_by_role("button", name="Copy the command line"))
    page.get_by_text("Copied").wait_for()
    commands = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert commands == page.locator(".command pre").inner_text().splitlines()
    printed = ""
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "sim"
        printed = installation.run(tmp_path, *words[1:])
    table = {k.strip(): float(v) for k, v in re.findall(r"^(.*?): +([\d.]+) *$", printed, re.M)}
    assert visitor.tile("TTFT, median") == " ".join(scaled_time(table["Median TTFT (ms)"]))
    assert visitor.tile("TPOT, median") == " ".join(scaled_time(table["Median TPOT (ms)"]))
    assert visitor.tile("Request throughput") == f"{table['Request throughput (req/s)']:.2f} req/s"
    assert visitor.tile("Prefix cache hits") == f"{table['Prefix cache hit rate (%)']:.1f} %"

    deployment = Deployment(gpu="a100-sxm-80gb", max_num_seqs=64)
    result = simulate(read_trace(tmp_path / "traffic.jsonl"), deployment)
    assert round(result.summary["median_ttft_ms"], 2) == table["Median TTFT (ms)"]
    assert round(result.summary["p99_itl_ms"], 2) == table["P99 ITL (ms)"]


def test_a_shared_link_restores_the_view_and_the_pins(visit):
    first, second = visit(), visit()
    page = first.open(f"?{SMALL}&tensor_parallel_size=2")
    press(page.get_by_role("button", name="Pin"))
    first.settle()
    page.get_by_role("spinbutton", name="Prompt length, mean (tokens)").fill("2000")
    page.keyboard.press("Enter")
    page.wait_for_url("**input_mean=2000*")
    first.settle()
    other = second.open(page.url.split("/", 3)[3])
    assert second.tiles() == first.tiles()
    assert other.get_by_role("spinbutton", name="Prompt length, mean (tokens)").input_value() == "2000"
    assert "2 × h100-sxm-80gb" in other.locator("h3").last.inner_text()
    other.get_by_text("Pinned variants").wait_for()
    assert other.get_by_text("vs. pinned").count() > 0
    second.picture("compare")


def test_what_is_wrong_is_said_in_words(visit):
    visitor = visit()
    page = visitor.open(f"?{SMALL}&tensor_parallel_size=three")
    assert "tensor_parallel_size: 'three'" in page.get_by_test_id("stAlert").first.inner_text()
    assert visitor.tiles()
    page.get_by_role("spinbutton", name="GPUs per layer").fill("3")
    page.keyboard.press("Enter")
    page.get_by_text("must divide the 32 attention heads").wait_for()


def test_uploads_good_broken_and_too_large(visit, tmp_path):
    good, broken, huge = tmp_path / "mine.csv", tmp_path / "broken.csv", tmp_path / "huge.csv"
    good.write_text(AZURE)
    broken.write_text(AZURE.replace("396", "many"))
    with huge.open("wb") as out:
        out.truncate(200 * 10**6)
    visitor = visit()
    page = visitor.open(f"?{SMALL}")
    press(page.get_by_text("Upload a trace", exact=True))
    field = page.get_by_test_id("stFileUploaderDropzoneInput").first

    field.set_input_files(huge)
    page.get_by_text("must be 100.0MB or smaller").wait_for()
    assert visitor.tiles()

    field.set_input_files(good)
    page.get_by_text("sim run mine.csv").first.wait_for()
    page.get_by_text("3 requests,").first.wait_for()
    assert re.search(r"source=trace%3A[0-9a-f]{16}%3Amine.csv", page.url)

    field.set_input_files(broken)
    message = page.get_by_test_id("stAlert").filter(has_text="broken.csv:3: ")
    message.wait_for()
    assert "'many'" in message.inner_text()
    assert "/tmp" not in message.inner_text()


def test_a_dark_tablet_needs_no_scrolling_sideways(visit):
    visitor = visit()
    visitor.page.emulate_media(color_scheme="dark")
    visitor.page.set_viewport_size({"width": 820, "height": 1180})
    page = visitor.open(f"?{SMALL}")
    wide, seen = page.evaluate(
        "[document.querySelector('[data-testid=stMain]').scrollWidth, window.innerWidth]"
    )
    assert wide <= seen
    background = page.evaluate(
        "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    )
    assert max(int(part) for part in re.findall(r"\d+", background)[:3]) < 64
    visitor.picture("dark-tablet")


def test_the_scheduler_is_watched_step_by_step(visit):
    visitor = visit()
    page = visitor.open(f"systems?{SMALL}")
    press(page.get_by_role("tab", name="Step by step"))
    visitor.settle()
    page.get_by_text("R0 starts: 300 tokens of its prompt.").first.wait_for()
    slider = page.get_by_role("slider", name="Iteration").last
    slider.focus()
    slider.press("ArrowRight")
    page.get_by_text("R0 decodes one token").first.wait_for()
    visitor.picture("step-by-step")


def test_sizing_can_be_stopped_and_finds_the_cheapest(visit):
    visitor = visit()
    page = visitor.open("size?num_prompts=100")
    press(page.get_by_role("button", name="Find the cheapest"))
    press(page.get_by_role("button", name="Stop", exact=True))
    page.get_by_text("Stopped.").wait_for()
    for name, surplus in (("GPUs", 2), ("GPUs per layer (TP)", 1)):
        page.get_by_role("combobox", name=name, exact=True).focus()
        for _ in range(surplus):
            page.keyboard.press("Backspace")
        page.keyboard.press("Escape")
    press(page.get_by_role("button", name="Find the cheapest"))
    page.get_by_text("Run 1 replica of 1 x h100-sxm-80gb").wait_for(timeout=4 * PATIENCE_MS)
    page.get_by_text("tpot:p99:100: ").wait_for()
    visitor.picture("size")


def test_ten_readers_at_once_each_see_their_own_and_memory_is_bounded(visit, server):
    readers = [visit() for _ in range(10)]
    for seed, reader in enumerate(readers):
        reader.page.goto(f"{server.address}/?num_prompts=300&seed={seed}", wait_until="commit")
    for seed, reader in enumerate(readers):
        result = work.result_of(View.of({"num_prompts": 300, "seed": seed}))
        reader.page.get_by_text("Take it along").wait_for()
        shown = f"{result.summary['completed']:,} finished in {result.summary['duration']:,.0f} s"
        reader.page.get_by_text(shown).wait_for()
        assert reader.tile("TTFT, median") == " ".join(scaled_time(result.summary["median_ttft_ms"]))
    assert memory_of(server.pid) < 2**30


def memory_of(pid: int) -> int:
    """Bytes that a process and its children hold, pages they share counted once per process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024
    return own + sum(memory_of(int(child)) for child in children)
