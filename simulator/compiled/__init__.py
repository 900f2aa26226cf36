"""The hot modules as machine code, where an installation has it.

`MODULES` are plain Python and run as they are. Installing also compiles them with mypyc (`simulator.compiled.build`),
which makes a simulation about twice as fast, and changes nothing else: the records are the same to the last bit
(``tests/unit/test_compiled.py``). What was compiled lies in a folder beside this file that is named after the
interpreter and a digest of the sources. Edit one of them and the digest no longer fits: Python then reads the sources.
``SERVESIM_PURE=1`` in the environment does so in any case.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["MODULES", "digest", "folder", "install", "is_compiled"]

MODULES = (
    "injection",
    "replica",
    "results.itl",
    "results.series",
    "scheduling.base",
    "scheduling.blocks",
    "scheduling.decoding",
    "scheduling.llamacpp",
    "scheduling.llamacpp_batch",
    "scheduling.llamacpp_server",
    "scheduling.request",
    "scheduling.token_runs",
    "scheduling.vllm_v1",
    "steptime.prefill",
    "steptime.steptime",
    "steptime.tables",
)
"""What every simulation runs through, vLLM's policy, and llama.cpp's, the slowest to simulate.

All of `scheduling` compiles too, but takes minutes.
"""
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def sources() -> list[Path]:
    """The files that are compiled, in a fixed order."""
    return [ROOT / f"{module.replace('.', '/')}.py" for module in MODULES]


def digest() -> str:
    """Of the sources as they are now, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for path in sources():
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def folder() -> Path:
    """Where the machine code of these sources for this interpreter belongs."""
    return HERE / f"{sys.implementation.cache_tag}-{sys.platform}-{digest()}"


class Finder:
    """Finds compiled modules in *place* (a "meta path finder" in the import system's terms)."""

    def __init__(self, place: Path) -> None:
        suffix = EXTENSION_SUFFIXES[0]
        files = place.rglob(f"*{suffix}")
        self.files = {".".join(path.relative_to(place).parts).removesuffix(suffix): path for path in files}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self.files.get(name)
        if file is None:
            return None
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def install() -> None:
    """Let imports find the machine code, if there is any for these sources."""
    if os.environ.get("SERVESIM_PURE") or not any(HERE.glob("*-*-*")):
        return
    place = folder()
    if place.is_dir():
        sys.meta_path.insert(0, Finder(place))


def is_compiled() -> bool:
    """Whether this process runs the machine code."""
    from simulator.scheduling import blocks

    return not str(blocks.__file__).endswith(".py")
