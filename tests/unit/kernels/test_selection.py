"""Which form is chosen, and what the user is told."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from engine.kernels import OPERATORS, get_kernels, selection  # noqa: E402
from simulator.errors import ConfigurationError, UnknownNameError  # noqa: E402


def test_a_cpu_gets_torch_and_the_reason():
    kernels = get_kernels("cpu", torch.bfloat16)
    assert kernels.describe() == "kernels: torch (cpu device)"
    assert set(kernels.form) == set(OPERATORS)


def test_unknown_backend_names_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown kernel backend 'tritn': did you mean 'triton'"):
        get_kernels("cpu", backend="tritn")


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigurationError, match="kernels 'triton' cannot run here: cpu device"):
        get_kernels("cpu", backend="triton")


def test_every_refusal_is_in_the_reason(monkeypatch):
    """A GPU without nvcc and without Triton falls back to torch and says why, twice."""
    causes = {"cuda": "no nvcc", "triton": "no triton package"}
    monkeypatch.setattr(selection, "_refusal", lambda backend, device, dtype: causes[backend])
    kernels = get_kernels("cuda", torch.bfloat16)
    assert kernels.describe() == "kernels: torch (no nvcc; no triton package)"


def test_fp32_is_not_for_the_cuda_form():
    cause = selection._refusal("cuda", torch.device("cuda"), torch.float32)
    assert cause == "CUDA form is for bfloat16 and float16, not float32"
