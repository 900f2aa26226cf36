"""A CPU that stands in for a GPU: the CUDA sources, compiled against the emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory):
    """CUDA kernels whose library runs on the CPU."""
    from engine.kernels.build import SOURCES, sources
    from engine.kernels.cuda_backend import CudaKernels
    from engine.kernels.library import Library

    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulated kernels")
    library = tmp_path_factory.mktemp("emulated") / "kernels.so"
    headers = Path(__file__).parent / "emulator"
    flags = ["-std=c++17", "-O1", "-Wno-unknown-pragmas", "-DKERNELS_ON_CPU", "-shared", "-fPIC"]
    paths = [f"-I{headers}", f"-I{SOURCES}", "-x", "c++", *map(str, sources())]
    done = subprocess.run(
        [compiler, *flags, *paths, "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:2000]
    return CudaKernels(torch.device("cpu"), "emulated", Library(library), processors=(4, 228 * 1024))
