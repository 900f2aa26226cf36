"""Reading safetensors files with nothing but torch.

A file is eight bytes of header length (little-endian), the header as JSON (name: dtype, shape, offsets), and
the tensors' bytes (https://github.com/huggingface/safetensors). It is mapped, so a tensor is read when it
is used.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.errors import InputError

__all__ = ["Checkpoint"]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Checkpoint:
    """All tensors of the ``*.safetensors`` files of a directory, by name."""

    def __init__(self, directory: str | Path) -> None:
        files = sorted(Path(directory).glob("*.safetensors"))
        if not files:
            raise InputError(directory, "holds no *.safetensors file")
        self.directory = Path(directory)
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            self._tensors.update(_read(file))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise InputError(self.directory, "is missing in the safetensors files", field=name)
        return tensor


def _read(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        # A private mapping is writable for torch's sake; the file is never written.
        data = memoryview(
            mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length:
        raise InputError(file, f"must hold a header of {length} bytes, and has {len(data)} in all")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except ValueError as error:
        raise InputError(file, f"header must be JSON: {error}") from error
    body = data[8 + length :]
    return {
        name: _tensor(file, name, entry, body) for name, entry in header.items() if name != "__metadata__"
    }


def _tensor(file: Path, name: str, entry: dict[str, Any], body: memoryview) -> Tensor:
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise InputError(file, f"must be one of {', '.join(DTYPES)}", field=name, value=entry["dtype"])
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    if stop > len(body):
        raise InputError(file, f"ends at byte {len(body)}, before the tensor's {stop}", field=name)
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(body[start:stop], dtype=dtype).view(shape)
