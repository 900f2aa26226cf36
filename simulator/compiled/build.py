"""Compile the hot modules: ``python -m simulator.compiled.build``.

Needs a C compiler, mypy and setuptools. The build hook of the project (``hatch_build.py``)
does the same while installing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from simulator.compiled import HERE, ROOT, folder, sources

__all__ = ["CompileError", "build"]

MYPY = ("--follow-imports=skip", "--ignore-missing-imports", "--config-file=")
"""What is not compiled is not looked at: its types would cost more time than they save."""


class CompileError(Exception):
    """No compiler, or it did not get through."""


def build() -> Path:
    """Compile, put the result where the import system looks for it, and drop what older sources left. Its place.

    Raises `CompileError` with the reason.
    """
    place = folder()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        _compile(Path(scratch), made)
        for old in HERE.glob("*-*-*"):
            shutil.rmtree(old)
        shutil.copytree(made, place)
    return place


def _compile(scratch: Path, made: Path) -> None:
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext
    except ImportError as error:
        raise CompileError(str(error)) from None
    files = [str(path.relative_to(ROOT.parent)) for path in sources()]
    hints = str((HERE / "attributes.py").relative_to(ROOT.parent))
    before = Path.cwd()
    os.chdir(ROOT.parent)
    try:
        extensions = mypycify(
            [*MYPY, f"--cache-dir={scratch / 'cache'}", *files, hints],
            only_compile_paths=files,
            opt_level="1",
            debug_level="0",
            target_dir=str(scratch / "c"),
        )
        command = build_ext(Distribution({"name": "servesim", "ext_modules": extensions}))
        command.build_lib, command.build_temp = str(made), str(scratch / "objects")
        command.ensure_finalized()
        command.run()
    except (Exception, SystemExit) as error:  # mypyc ends the process where it finds a mistake
        raise CompileError(str(error)) from error
    finally:
        os.chdir(before)


if __name__ == "__main__":
    print(f"compiled into {build()}", file=sys.stderr)
