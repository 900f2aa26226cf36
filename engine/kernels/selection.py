"""Which form of the kernels runs here: CUDA where nvcc built it, else Triton, else torch. Always with the
reason."""

from __future__ import annotations

import importlib.util
import os

import torch

from engine.kernels.interface import Kernels
from engine.kernels.torch_backend import TorchKernels
from simulator.errors import ConfigurationError, UnknownNameError

__all__ = ["BACKENDS", "get_kernels"]

BACKENDS = ("auto", "cuda", "torch", "triton")
TENSOR_CORE_DTYPES = (torch.bfloat16, torch.float16)


def get_kernels(
    device: torch.device | str, dtype: torch.dtype | None = None, backend: str = "auto"
) -> Kernels:
    """The kernels for a *device* and the model's *dtype*.

    Raises `ConfigurationError` where a *backend* named explicitly cannot run here; ``auto`` takes the next
    one and gives the cause in `Kernels.reason`.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("kernel backend", backend, BACKENDS)
    device = torch.device(device)
    if backend != "auto":
        return _named(backend, device, dtype)
    refusals: list[str] = []
    for name in ("cuda", "triton") if device.type == "cuda" else ():
        refusal = _refusal(name, device, dtype)
        if refusal is None:
            return _build(name, device, "; ".join(refusals) or "fastest form that runs here")
        refusals.append(refusal)
    return TorchKernels(device, "; ".join(refusals) or f"{device.type} device")


def _named(backend: str, device: torch.device, dtype: torch.dtype | None) -> Kernels:
    refusal = _refusal(backend, device, dtype)
    if refusal is not None:
        raise ConfigurationError(f"kernels {backend!r} cannot run here: {refusal}")
    return _build(backend, device, "asked for")


def _refusal(backend: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why a backend cannot run here, or None."""
    if backend == "torch":
        return None
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"{device.type} device"
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else "no triton package"
    if dtype is not None and dtype not in TENSOR_CORE_DTYPES:
        return f"CUDA form is for bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    from engine.kernels import build

    return build.refusal(device)


def _build(backend: str, device: torch.device, reason: str) -> Kernels:
    if backend == "torch":
        return TorchKernels(device, reason)
    if backend == "triton":
        from engine.kernels.triton_backend import TritonKernels

        return TritonKernels(device, reason)
    from engine.kernels.cuda_backend import CudaKernels

    return CudaKernels(device, reason)
