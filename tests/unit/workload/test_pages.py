"""The guide and the reference of traces, and the bundled examples, are true as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from simulator.cli.trace import app as trace_app
from simulator.workload import FORMATS, read_trace
from simulator.workload.stats import trace_stats

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guides" / "traces.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "trace-format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: str) -> list[str]:
    app = typer.Typer()
    app.add_typer(trace_app, name="trace")
    program, *arguments = shlex.split(command)
    result = CliRunner().invoke(app, arguments)
    assert (program, result.exit_code) == ("sim", 0), result.exception
    return [line.rstrip() for line in result.output.splitlines()]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Commands and the output that the page shows, if it shows any."""
    found = []
    for block in blocks(text, "console"):
        for part in block.split("$ ")[1:]:
            command, *shown = part.rstrip().split("\n")
            found.append((command, shown))
    return found


@pytest.mark.parametrize(("command", "shown"), commands(GUIDE))
def test_the_guides_commands_print_what_it_shows(
    workplace, monkeypatch, command: str, shown: list[str]
) -> None:
    monkeypatch.chdir(workplace)
    printed = run(command)
    assert not shown or printed == shown


@pytest.mark.parametrize("code", blocks(GUIDE, "python"))
def test_the_guides_code_runs(workplace, monkeypatch, code: str) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(code, "traces.md", "exec"), {})


def test_the_reference_lists_every_format() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\|.*\|.*\|.*\|$", REFERENCE, re.MULTILINE)
    assert rows == list(FORMATS)


def test_the_reference_lists_every_key_that_is_written(workplace) -> None:
    keys = set(re.findall(r"`([a-z_]+)`", REFERENCE.split("## Formats")[0]))
    for example in (workplace / "examples").glob("*.jsonl"):
        assert set(re.findall(r'"([a-z_]+)":', example.read_text())) <= keys


@pytest.mark.parametrize("page", ["README.md"])
def test_examples_are_what_their_readme_says(workplace, monkeypatch, page: str) -> None:
    monkeypatch.chdir(workplace)
    for command, _ in commands((ROOT / "examples" / page).read_text(encoding="utf-8")):
        run(command)
        name = command.split()[3]
        made, bundled = (
            trace_stats(read_trace(folder / name)) for folder in (workplace, workplace / "examples")
        )
        assert made.input_length.mean == pytest.approx(bundled.input_length.mean, rel=0.05)
        assert made.request_rate == pytest.approx(bundled.request_rate, rel=0.1)


def test_the_chat_example_is_near_azures_published_statistics(workplace) -> None:
    stats = trace_stats(read_trace(workplace / "examples" / "chat-2k.jsonl"))
    assert stats.requests == 2000
    assert stats.input_length.mean == pytest.approx(1154.7, rel=0.05)
    assert stats.output_length.mean == pytest.approx(211.1, rel=0.05)
    assert stats.request_rate == pytest.approx(5.53, rel=0.1)
    assert stats.cv == pytest.approx(1.094, abs=0.1) and stats.idc[60] > 5
