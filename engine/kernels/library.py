"""The shared library's C interface, for ctypes.

Pointers are passed as integers (`address`). Every function but `probe` takes the
stream last, and all return CUDA's error code.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DTYPE_CODES", "Library", "address"]

DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

PTR, INT, LONG, REAL = c_void_p, c_int, c_int64, c_float
SIGNATURES: dict[str, list[type]] = {
    "copy_blocks": [*[PTR] * 4, INT, LONG, PTR],
    "decode_attention": [*[PTR] * 8, REAL, *[INT] * 7, LONG, *[INT] * 3, PTR],
    "draw": [PTR, PTR, INT, INT, *[PTR] * 3, PTR],
    "kv_write": [*[PTR] * 5, INT, INT, LONG, LONG, PTR],
    "prefill_attention": [*[PTR] * 7, REAL, *[INT] * 8, LONG, INT, PTR],
    "probe": [],
    "process_logits": [PTR, PTR, INT, INT, INT, LONG, *[PTR] * 9, PTR],
    "rms_norm": [*[PTR] * 5, REAL, *[INT] * 4, LONG, LONG, PTR],
    "rope": [*[PTR] * 4, *[INT] * 6, LONG, LONG, PTR],
    "silu_mul": [PTR, PTR, INT, INT, INT, LONG, PTR],
    "swap_blocks": [*[PTR] * 3, INT, LONG, PTR],
    "swap_each_block": [*[PTR] * 3, INT, LONG, PTR],
}


class Library:
    """The loaded library; each call raises where the launch was refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        for name, arguments in SIGNATURES.items():
            function = getattr(self._functions, name)
            function.argtypes, function.restype = arguments, c_int

    def refusal(self) -> str | None:
        """Why the library cannot run here, or None: its CUDA runtime, nvcc's, may want a newer driver than torch's."""
        code = self._functions.probe()
        return None if code == 0 else f"CUDA error {code}: the runtime of nvcc does not work with this driver"

    def call(self, name: str, *arguments: int | float) -> None:
        """Launch; raises `RuntimeError` with CUDA's error number where that fails."""
        code = getattr(self._functions, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: CUDA error {code}")


def address(argument: Tensor | int | float | None) -> int | float:
    """A tensor's address, 0 for an absent one; numbers as they are."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument
