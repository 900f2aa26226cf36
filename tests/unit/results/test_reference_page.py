"""``docs/reference/metrics.md`` and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from simulator.results import LATENCIES, METRICS
from simulator.results.points import AMOUNTS, LEVELS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


def table_rows(heading: str) -> dict[str, list[str]]:
    """Cells of the table below *heading* by the name in backticks in their first cell."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| " in line
    ]
    return {match[1]: row[1:] for row in rows if (match := re.fullmatch(r"`(.+)`", row[0]))}


def test_every_scalar_is_documented_with_its_formula() -> None:
    expected = {m.tag: [m.unit, m.formula] for m in METRICS}
    assert table_rows("Counts, rates and shares") == expected


def test_every_latency_is_documented_with_its_formula() -> None:
    expected = {m.tag: [m.header.removesuffix(" (ms)"), m.formula] for m in LATENCIES}
    assert table_rows("Latencies") == expected


def test_every_column_of_the_series_is_documented() -> None:
    assert set(table_rows("series.parquet")) == {"replica", "time", "span", *LEVELS, *AMOUNTS}
