"""The Triton form on a machine without a GPU: numerics by its interpreter, code by its compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="no triton package")

from engine.kernels.conformance import checks  # noqa: E402

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = {
    80: 163 * 1024,
    90: 227 * 1024,
}  # bytes a block may have (CUDA programming guide, table of limits)


def last_line_of(arguments: list[str], **environment: str) -> dict:
    """The JSON object that a Python process prints last. Interpreting is chosen when Triton is imported."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines and lines[-1].startswith("{"), done.stderr[-2000:]
    return json.loads(lines[-1])


@pytest.fixture(scope="module")
def outcomes():
    """fp16: the interpreter multiplies bf16 tiles as the integers that hold them."""
    command = ["-m", "engine.kernels.conformance", "--backend=triton", "--device=cpu", "--dtype=float16"]
    found = last_line_of(command, TRITON_INTERPRET="1")
    if any("only 0-dimensional arrays" in cause for cause in found.values()):
        pytest.skip("this Triton's interpreter does not work with this numpy (seen: 3.6 with 2.4)")
    return found


@pytest.mark.parametrize("name", [name for name, _ in checks()])
def test_interpreted_form_conforms(outcomes, name):
    assert outcomes[name] == ""


@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles_for_tensor_cores(architecture, tmp_path):
    script = str(Path(__file__).parent / "compile_triton.py")
    kernels = last_line_of([script, str(architecture)], TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    attention = {name: one for name, one in kernels.items() if name.startswith(("decode ", "prefill "))}
    assert len(attention) == (6 if architecture == 90 else 2)
    for name, one in attention.items():
        assert one["tensor_cores"] > 0 and one["copies"] > 0, name
        if architecture == 90 and name.startswith("prefill"):
            assert one["wgmma"] > 0, f"{name}: not on Hopper's own tensor-core path"
    assert max(one["shared"] for one in kernels.values()) <= SHARED_MEMORY[architecture]
