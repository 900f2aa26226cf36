"""Number formats: the names people write, the bytes they take, the tensor-core peak they run on.

A weight-only format (``int8_wo``, ``int4_wo``) stores weights in few bits and multiplies in bf16;
``int8`` means W8A8, as SmoothQuant runs it: both operands in eight bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import UnknownNameError

__all__ = ["DTYPES", "Dtype", "canonical_dtype", "dtype_bytes"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number format of a matrix product."""

    weight_bytes: float
    """Bytes of one stored weight, without scales."""
    activation_bytes: float
    """Bytes of one input element as the kernel reads it."""
    compute: str
    """Name of the datasheet peak that the multiplication runs on."""


DTYPES: dict[str, Dtype] = {
    "bf16": Dtype(2.0, 2.0, "bf16"),
    "fp16": Dtype(2.0, 2.0, "fp16"),
    "fp8": Dtype(1.0, 1.0, "fp8"),
    "int8": Dtype(1.0, 1.0, "int8"),
    "fp4": Dtype(0.5, 0.5, "fp4"),
    "int8_wo": Dtype(1.0, 2.0, "bf16"),
    "int4_wo": Dtype(0.5, 2.0, "bf16"),
    "fp8_wo": Dtype(1.0, 2.0, "bf16"),
    "fp4_wo": Dtype(0.5, 2.0, "bf16"),
}

ALIASES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "e4m3": "fp8",
    "float8_e4m3fn": "fp8",
    "fp8(deepgemm)": "fp8",
    "fp8_e4m3": "fp8",
    "w8a8": "int8",
    "sq": "int8",
    "w8a16": "int8_wo",
    "int4": "int4_wo",
    "w4a16": "int4_wo",
    "awq": "int4_wo",
    "gptq": "int4_wo",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}


def canonical_dtype(name: str) -> str:
    """The name under which profiles file *name*; raises `UnknownNameError` for one that is not known.

    >>> canonical_dtype("bfloat16"), canonical_dtype("FP8")
    ('bf16', 'fp8')
    """
    if name in DTYPES:
        return name
    lowered = name.lower()
    found = ALIASES.get(lowered, lowered)
    if found not in DTYPES:
        raise UnknownNameError("dtype", name, {*DTYPES, *ALIASES})
    return found


def dtype_bytes(name: str) -> float:
    """Bytes of one stored element of *name*."""
    return DTYPES[canonical_dtype(name)].weight_bytes
