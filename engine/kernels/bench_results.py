"""Results of the kernel benchmark: rows, the file that keeps them, the table, and targets reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError

__all__ = ["OURS", "Result", "format_table", "read_results", "verdicts", "write_results"]

LARGE_KV = 1 << 30  # bytes from which the bandwidth target holds
DECODE_TARGET, PREFILL_TARGET = 0.90, 0.60
OURS = ("cuda", "triton", "torch")


@dataclass
class Result:
    """One row of the table; *fraction* is of the measured ceiling, *cause* why there is no time."""

    operator: str
    shape: str
    form: str
    seconds: float = 0.0
    spread: float = 0.0
    repeats: int = 0
    mode: str = ""
    rate: float = 0.0  # bytes/s, for products FLOP/s
    fraction: float = 0.0
    kv_bytes: int = 0
    group: int = 0
    cause: str = ""


def write_results(path: Path, results: Sequence[Result], facts: dict[str, Any]) -> None:
    document = {"environment": facts, "results": [asdict(row) for row in results]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_results(path: Path) -> list[Result]:
    """The rows of a file that `main` wrote; raises `InputError` for another file."""
    try:
        return [Result(**row) for row in json.loads(path.read_text())["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, "must be a file written by engine.bench_kernels", value=str(error)) from error


def format_table(results: Sequence[Result]) -> str:
    """Fixed columns: operator, shape, form, time with spread, rate, share of the ceiling."""
    lines = [f"{'operator':<18}{'shape':<50}{'form':<22}{'time':>11}{'spread':>9}{'rate':>16}{'share':>8}"]
    for row in results:
        head = f"{row.operator:<18}{row.shape:<50}{row.form:<22}"
        if row.cause:
            lines.append(f"{head}  {row.cause}")
            continue
        unit, scale = ("TFLOP/s", 1e12) if row.operator in ("gemm", "prefill_attention") else ("GB/s", 1e9)
        rate = f"{row.rate / scale:.1f} {unit}"
        spread = f"±{100 * row.spread / row.seconds:.1f}%"
        note = "" if row.mode in ("graph", "host") else f"  {row.mode}"
        lines.append(
            f"{head}{row.seconds * 1e6:>8.1f} us{spread:>9}{rate:>16}{100 * row.fraction:>7.1f}%{note}"
        )
    return "\n".join(lines)


def is_ours(row: Result) -> bool:
    """A form of ours, or one of its variants (``cuda, 4 splits``)."""
    return row.form.split(",")[0] in OURS


def verdicts(results: Sequence[Result]) -> list[str]:
    """Each target, reached or missed, with the figure that decides it."""
    lines = []
    for operator, target in (("decode_attention", DECODE_TARGET), ("prefill_attention", PREFILL_TARGET)):
        for shape in dict.fromkeys(row.shape for row in results if row.operator == operator):
            rows = [r for r in results if r.shape == shape and r.operator == operator and not r.cause]
            ours = [row for row in rows if is_ours(row)]
            if not ours:
                continue
            best = min(ours, key=lambda row: row.seconds)
            due = operator != "decode_attention" or (best.kv_bytes > LARGE_KV and 4 <= best.group <= 8)
            if due:
                word = "reached" if best.fraction >= target else "MISSED"
                lines.append(
                    f"{word}: {operator} {shape}: {best.fraction:.1%} by {best.form}, target {target:.0%}"
                )
            faster = [row for row in rows if not is_ours(row) and row.seconds < best.seconds]
            for row in faster:
                ratio = best.seconds / row.seconds
                lines.append(f"SLOWER: {operator} {shape}: {best.form} takes {ratio:.2f} x {row.form}")
    return lines
