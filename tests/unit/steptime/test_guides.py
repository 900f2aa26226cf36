"""The pages about step times and estimates are run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from simulator.cli.estimate import estimate
from simulator.cli.models import models
from simulator.steptime import HostTraits

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [DOCS / "background" / "step-time.md", DOCS / "guides" / "estimate.md"]


def blocks(language):
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code):
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize(
    "line", [line for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "]
)
def test_commands_run(line):
    app = typer.Typer()
    app.command("estimate")(estimate)
    app.command("models")(models)
    program, *arguments = shlex.split(line[2:])
    result = CliRunner().invoke(app, arguments)
    assert (program, result.exit_code) == ("sim", 0)
    assert len(result.output.splitlines()) > 10


def test_every_trait_is_explained():
    text = PAGES[0].read_text(encoding="utf-8")
    skipped = {"source", "status", "graph_sizes", "mixed_graph"}  # explained as `graph` and `mixed`
    assert all(f"`{name}`" in text for name in HostTraits.__dataclass_fields__ if name not in skipped)
