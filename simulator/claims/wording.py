"""What `sim reproduce` prints: as text for the terminal, as a table for the README, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.claims.claim import Claim, Published, Range, Verdict, compare
from simulator.claims.registry import Reproduced
from simulator.errors import InputError

__all__ = [
    "as_json",
    "as_markdown",
    "as_text",
    "between_markers",
    "published_rows",
    "put_between_markers",
    "verdict_words",
]

WIDTH = 110
MARKERS = ("<!-- sim reproduce -->", "<!-- end of sim reproduce -->")
"""Lines of a Markdown file between which `as_markdown` goes."""
HEADINGS = ("claim", "case", "published", "ours", "ours is")


def verdict_words(published: Published, ours: Range) -> str:
    """Where ours lies: ``agrees``, ``close``, or how far off in which direction."""
    verdict: Verdict = compare(published, ours)
    if verdict in ("agrees", "close"):
        return verdict
    stated = published.range
    near = (ours.low, stated.high) if verdict == "higher" else (ours.high, stated.low)
    if published.unit == "%":
        return f"{abs(near[0] - near[1]):.0f} points {verdict}"
    return f"{verdict}: × {near[0] / near[1]:.2f}"


def published_rows(claims: Sequence[Claim]) -> list[tuple[str, str, str]]:
    """(claim id, case, published figure) of every figure of *claims*."""
    return [(claim.id, figure.label, figure.text) for claim in claims for figure in claim.published]


def _differs(result: Reproduced) -> bool:
    return any(
        compare(figure, result.outcome.ours[figure.label]) != "agrees" for figure in result.claim.published
    )


def as_text(result: Reproduced) -> str:
    """One claim for the terminal."""
    claim, outcome = result.claim, result.outcome
    lines = [f"{claim.id}: {claim.title}"]
    rows = [("", "published", "ours", "")]
    rows += [
        (
            figure.label,
            figure.text,
            outcome.ours[figure.label].text(figure.unit),
            verdict_words(figure, outcome.ours[figure.label]),
        )
        for figure in claim.published
    ]
    lines += _columns(rows)
    if outcome.table:
        lines += ["", *_columns(outcome.table)]
    lines.append("")
    told = [("source", claim.source), ("set-up", claim.setup), ("lengths", outcome.lengths)]
    told += [("unknown", claim.unknown)]
    told += [("note", remark) for remark in outcome.remarks]
    if _differs(result):
        told.append(("differs", claim.why))
    for word, text in told:
        if text:
            lines += _paragraph(word, text)
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """*rows* of text under each other, the first column to the left; a row may be shorter than the others."""
    count = max(map(len, rows))
    full = [(*row, *("",) * (count - len(row))) for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(count)]
    return [
        (
            "  "
            + "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
        ).rstrip()
        for row in full
    ]


def _paragraph(word: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {word:8} ", subsequent_indent=" " * 11, break_long_words=False
    )


def as_markdown(results: Sequence[Reproduced]) -> str:
    """All claims as one table, then what is unknown about each and why ours differs."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for result in results:
        for i, figure in enumerate(result.claim.published):
            ours = result.outcome.ours[figure.label]
            name = f"`{result.claim.id}` {result.claim.title}" if i == 0 else ""
            cells = (name, figure.label, figure.text, ours.text(figure.unit), verdict_words(figure, ours))
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "<details><summary>Set-ups, what is unknown about each, and why ours may differ</summary>",
        "",
    ]
    lines += [_told(result) for result in results]
    lines += ["", "</details>"]
    return "\n".join(lines)


def between_markers(path: Path) -> str:
    """What stands between the markers of *path*. Raises `InputError` if they are not there."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    _, _, rest = text.partition(MARKERS[0])
    block, end, _ = rest.partition(MARKERS[1])
    if not end:
        raise InputError(path, f"must hold the lines {MARKERS[0]} and {MARKERS[1]}")
    return block


def put_between_markers(path: Path, table: str) -> None:
    """Replace what stands between the markers of *path* by *table*."""
    old = between_markers(path)
    text = path.read_text(encoding="utf-8")
    start = text.index(MARKERS[0]) + len(MARKERS[0])
    path.write_text(f"{text[:start]}\n\n{table}\n\n{text[start + len(old) :]}", encoding="utf-8")


def _told(result: Reproduced) -> str:
    claim = result.claim
    text = f"- `{claim.id}` ({claim.source}): {claim.setup}. Unknown: {claim.unknown}."
    return f"{text} Differs: {claim.why}." if _differs(result) else text


def as_json(result: Reproduced) -> dict[str, Any]:
    """One claim as plain values."""
    claim, outcome = result.claim, result.outcome
    return {
        "id": claim.id,
        "title": claim.title,
        "source": claim.source,
        "setup": claim.setup,
        "unknown": claim.unknown,
        "lengths": outcome.lengths,
        "figures": [
            {
                "case": figure.label,
                "unit": figure.unit,
                "bound": figure.bound,
                "published": [figure.low, figure.high],
                "ours": [outcome.ours[figure.label].low, outcome.ours[figure.label].high],
                "verdict": compare(figure, outcome.ours[figure.label]),
            }
            for figure in claim.published
        ],
        "table": [list(row) for row in outcome.table],
        "remarks": list(outcome.remarks),
        "why": claim.why if _differs(result) else None,
        "seconds": round(result.seconds, 2),
    }
