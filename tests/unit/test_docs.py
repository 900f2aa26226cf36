"""The documentation is executed: every ``sim`` command it shows runs, and prints what it says.

In a ``console`` block a line that starts with ``$ sim`` is run, and the lines under it must be in its output, in order;
``...`` stands for anything. A ``python`` block is run as it is (a ``py`` block, which needs a model, is not). Blocks
of one page share a directory and a namespace.
"""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
FENCE = re.compile(r"^```(console|python)\n(.*?)^```", re.S | re.M)
NEEDS_MORE = (
    "sim dashboard",
    "sim serve",
    "sim calibrate run",
    "sim calibrate validate",
    "sim calibrate observe",
)
"""Commands that stay up, or take the machine for minutes: their own tests run them."""


def run(line: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    from simulator.cli import main

    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    try:
        main()
    except SystemExit as exit_:
        assert not exit_.code, f"{line}: exit code {exit_.code}: {capsys.readouterr().err}"
    return str(capsys.readouterr().out)


def check(line: str, expected: list[str], output: str) -> None:
    want = "\n".join(text.rstrip() for text in expected).strip("\n")
    if not want:
        return
    got = "\n".join(text.rstrip() for text in output.splitlines())
    checker = doctest.OutputChecker()
    pattern = f"...\n{want}\n...\n"
    assert checker.check_output(pattern, f"\n{got}\n\n", doctest.ELLIPSIS), (
        f"{line}\nprinted\n{got}\nnot\n{want}"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    namespace: dict[str, Any] = {}
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(body, str(page), "exec"), namespace)
            capsys.readouterr()
            continue
        commands = re.split(r"^\$ ", body, flags=re.M)[1:]
        for command in commands:
            line, *expected = command.splitlines()
            if line.startswith("sim ") and not line.startswith(NEEDS_MORE):
                check(line, expected, run(line, capsys, monkeypatch))


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
