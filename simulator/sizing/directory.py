"""What a sizing leaves behind: ``size.json``, and the reports made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulator.results import check_replaceable
from simulator.sizing.report import sizing_html, sizing_markdown

__all__ = ["check_directory", "write_sizing"]

FILES = ("size.json", "report.html", "report.md")


def check_directory(directory: Path) -> None:
    """Raise `ConfigurationError` unless *directory* is absent, empty or an earlier sizing, and can be written."""
    check_replaceable(directory, FILES, "sizing")


def write_sizing(directory: Path, found: dict[str, Any]) -> None:
    """Write *found* and its reports as *directory*."""
    check_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.html").write_text(sizing_html(found), encoding="utf-8")
    (directory / "report.md").write_text(sizing_markdown(found), encoding="utf-8")
    text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
    (directory / "size.json").write_text(text + "\n", encoding="utf-8")
