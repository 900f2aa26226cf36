"""The frame of a page: style, plotting library, sections, tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.results.report import PLOT_CONFIG, section

__all__ = ["figure_section", "table", "write_page"]


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[str], footer: str) -> Path:
    """Write a page that needs no other file."""
    from plotly.offline import get_plotlyjs

    style = files("simulator.results").joinpath("report.css").read_text(encoding="utf-8")
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n"
    )
    body = "\n".join(part for part in sections if part)
    header = f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"{head}<body>\n<main>\n{header}\n{body}\n<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )
    return path


def figure_section(heading: str, note: str, figure: Any, below: str = "") -> str:
    """A titled box with a figure."""
    html = figure.to_html(full_html=False, include_plotlyjs=False, config=PLOT_CONFIG)
    return section(heading, html + below, note)


def table(frame: pd.DataFrame) -> str:
    """*frame* as it stands: its cells are text, those of right-aligned columns numbers."""
    head = "".join(f"<th{_align(frame, name)}>{escape(str(name))}</th>" for name in frame.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_align(frame, name)}>{escape(str(value))}</td>" for name, value in zip(frame.columns, row)
        )
        + "</tr>"
        for row in frame.itertuples(index=False)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _align(frame: pd.DataFrame, name: Any) -> str:
    cells = frame[name].astype(str).str.replace(r"[-+,.% e]", "", regex=True)
    return ' class="number"' if cells[cells != ""].str.isdecimal().all() else ""
