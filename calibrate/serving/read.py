"""Which layout a file of serving measurements has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.serving import closed_loop, published, vllm_logs
from calibrate.serving.case import Case, CaseSet
from simulator.errors import InputError

__all__ = ["read_cases", "read_closed_loops", "thin"]


def read_cases(path: Path) -> CaseSet:
    """The cases of *path*: a table of closed-loop or published results, or a folder of vLLM logs.

    Raises `InputError` for a file that cannot be read or has another layout.
    """
    if path.is_dir():
        return vllm_logs.vllm_log_cases(path)
    try:
        frame = pd.read_csv(path, low_memory=False)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(path, f"is not a CSV table: {' '.join(str(error).split())}") from None
    layouts = {
        closed_loop.COLUMNS: closed_loop.closed_loop_cases,
        published.COLUMNS: published.published_cases,
    }
    for columns, read in layouts.items():
        if set(columns) <= set(frame.columns):
            return read(path, frame)
    wanted = " or ".join(", ".join(columns) for columns in layouts)
    raise InputError(path, f"is no table of serving results: must have the columns {wanted}")


def read_closed_loops(folder: Path) -> list[Case]:
    """The cases of every closed-loop table in *folder*, by name of the file."""
    found: list[Case] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            header = file.readline().strip().split(",")
        if set(closed_loop.COLUMNS) <= set(header):
            found += read_cases(path).cases
    if not found:
        raise InputError(folder, "holds no table of closed-loop measurements")
    return found


def thin(cases: list[Case], limit: int | None) -> list[Case]:
    """At most *limit* of *cases*, evenly spaced."""
    if limit is None or len(cases) <= limit:
        return cases
    return [cases[i] for i in np.linspace(0, len(cases) - 1, limit).round().astype(int).tolist()]
