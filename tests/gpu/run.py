"""Runs the GPU tests by plain Python, without pytest.

    python3 tests/gpu/run.py [part of a test's name ...]

Calls every function ``test_*`` of the ``test_*.py`` files beside this one. One that raises
`unittest.SkipTest` is skipped with its reason. The last line counts; the exit status is 1 if a test failed.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def find_tests(patterns: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and function of every test whose name contains one of *patterns*."""
    for path in sorted(HERE.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except unittest.SkipTest as reason:
            print(f"SKIP {path.stem}: {reason}")
            continue
        for name, function in vars(module).items():
            full = f"{path.stem}::{name}"
            if name.startswith("test_") and (not patterns or any(part in full for part in patterns)):
                yield full, function


def main(patterns: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    for name, function in find_tests(patterns):
        start = time.perf_counter()
        try:
            function()
            outcome, detail = "PASS", ""
        except unittest.SkipTest as reason:
            outcome, detail = "SKIP", f": {reason}"
        except Exception:  # the next test runs all the same
            outcome, detail = "FAIL", "\n" + traceback.format_exc()
        counts[outcome] += 1
        print(f"{outcome} {name} ({time.perf_counter() - start:.1f} s){detail}", flush=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
