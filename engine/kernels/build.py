"""Building the CUDA kernels: nvcc, one shared library, cached.

The sources have a plain C interface, so the library depends neither on torch nor on Python; nvcc links the
CUDA runtime into it, so it loads (and says that there is no device) where there is no driver. The cache key
is everything the result depends on: sources, flags, compiler version.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.kernels.library import Library
from simulator.errors import ConfigurationError

__all__ = ["ARCHITECTURES", "build", "cache_directory", "command", "find_nvcc", "refusal", "sources"]

SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = ("80", "90")  # Ampere and Hopper data centre parts; cp.async and mma.sync need 80 or later
OLDEST = (8, 0)
FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "--threads", "0")


def sources() -> list[Path]:
    """The translation units, sorted by name."""
    return sorted(SOURCES.glob("*.cu"))


def find_nvcc() -> Path | None:
    """The compiler of ``CUDA_HOME``, of ``PATH``, or of the usual place; None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.is_file()), None)


def cache_directory() -> Path:
    """``ENGINE_CACHE``, or ``servesim/kernels`` in the user's cache (XDG base directories)."""
    if named := os.environ.get("ENGINE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "servesim" / "kernels"


def command(nvcc: Path, architectures: Sequence[str], output: Path, *extra: str) -> list[str]:
    """The compiler's command line."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    return [str(nvcc), *FLAGS, *targets, *extra, "-o", str(output), *map(str, sources())]


def build(architectures: Sequence[str] = ARCHITECTURES) -> Path:
    """Path of the shared library for *architectures* (such as ``"90"``), compiled if the cache lacks it.

    Raises `ConfigurationError` without a compiler, or with the compiler's first error.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise ConfigurationError("no nvcc in CUDA_HOME, PATH or /usr/local/cuda")
    target = cache_directory() / f"kernels-{_key(nvcc, architectures)}.so"
    if not target.exists():
        _compile(nvcc, architectures, target)
    return target


def _key(nvcc: Path, architectures: Sequence[str]) -> str:
    digest = hashlib.sha256()
    digest.update(_run([str(nvcc), "--version"]).stdout.encode())
    digest.update("\0".join((*FLAGS, *architectures)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cu", ".cuh"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(nvcc: Path, architectures: Sequence[str], target: Path) -> None:
    """Compile beside the target and rename, so that a second process never loads half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        done = _run(command(nvcc, architectures, output))
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise ConfigurationError(f"nvcc failed: {lines[0] if lines else f'exit {done.returncode}'}")
        output.replace(target)


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def architecture_of(device: torch.device) -> str:
    """The compile target of a CUDA device, such as ``"90"``."""
    return "{}{}".format(*torch.cuda.get_device_capability(device))


def refusal(device: torch.device) -> str | None:
    """Why the CUDA form cannot run on *device*, or None. Builds the library."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    try:
        return Library(build((architecture_of(device),))).refusal()
    except (ConfigurationError, OSError) as error:
        return str(error)
