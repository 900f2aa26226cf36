"""Number formats: how many bits a stored weight takes, and in which precision it is multiplied.

A quantised format stores groups of weights with their scales, so its bits per weight are not a whole
number: int4 with groups of 128 (AWQ, GPTQ) has a 16-bit scale and a 4-bit zero point per group,
4 + 20/128 = 4.156 bits; MXFP4 has an 8-bit scale per 32 (OCP microscaling 1.0), NVFP4 one per 16;
the K-quants of llama.cpp nest scales in super-blocks of 256 (ggml-quants).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from simulator.errors import UnknownNameError

__all__ = ["DTYPES", "DType", "Precision", "dtype"]


@dataclass(frozen=True)
class DType:
    """A storage format.

    *bits* per weight with its scales; *law* names the GEMM law that multiplies it (``_wo`` is
    weight-only: weights are dequantised and multiplied in 16 bits).
    """

    name: str
    bits: float
    law: str

    @property
    def bytes(self) -> float:
        """Bytes per weight, scales included."""
        return self.bits / 8


def _formats() -> dict[str, DType]:
    rows = [
        ("fp32", 32.0, "bf16"),
        ("bf16", 16.0, "bf16"),
        ("fp16", 16.0, "fp16"),
        ("fp8", 8.0, "fp8"),
        ("fp8_block", 8 + 32 / 128**2, "fp8"),  # one fp32 scale per 128 x 128 block
        ("int8", 8.0, "int8"),  # SmoothQuant W8A8
        ("int8_wo", 8.0, "int8_wo"),  # weight only
        ("int4", 4 + 20 / 128, "int4_wo"),  # AWQ, GPTQ: groups of 128
        ("mxfp4", 4 + 8 / 32, "fp4_wo"),
        ("nvfp4", 4 + 8 / 16, "fp4"),
        ("q8_0", 8.5, "int8_wo"),
        ("q6_k", 6.5625, "int8_wo"),
        ("q5_k", 5.5, "int4_wo"),
        ("q5_k_m", 5.69, "int4_wo"),  # whole-file average over mixed layers, llama.cpp README
        ("q4_0", 4.5, "int4_wo"),
        ("q4_k", 4.5, "int4_wo"),
        ("q4_k_m", 4.85, "int4_wo"),
        ("q3_k", 3.4375, "int4_wo"),
        ("q2_k", 2.625, "int4_wo"),
    ]
    return {name: DType(name, bits, law) for name, bits, law in rows}


DTYPES: Mapping[str, DType] = MappingProxyType(_formats())

_ALIASES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "auto": "bf16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
    "w8a8": "int8",
    "sq": "int8",
    "int4_wo": "int4",
    "w4a16": "int4",
    "awq": "int4",
    "gptq": "int4",
    "fp4": "nvfp4",
}


def dtype(name: str) -> DType:
    """The format called *name* (``bf16``, ``bfloat16``, ``int4_wo``, ``q4_k_m``...)."""
    key = name.lower().replace("-", "_").removeprefix("torch.")
    key = _ALIASES.get(key, key)
    if key not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[key]


@dataclass(frozen=True)
class Precision:
    """The formats of one deployment: layer weights, experts, KV cache and LM head.

    *moe* defaults to *weights*. Embeddings and LM head stay in 16 bits in every checkpoint that quantises
    the linear layers only, which is the rule for fp8, AWQ, GPTQ and MXFP4.
    """

    weights: str = "bf16"
    kv: str = "bf16"
    moe: str | None = None
    head: str = "bf16"

    @property
    def linear(self) -> DType:
        """Format of attention projections and dense MLPs."""
        return dtype(self.weights)

    @property
    def experts(self) -> DType:
        """Format of routed experts."""
        return dtype(self.moe or self.weights)

    @property
    def cache(self) -> DType:
        """Format of keys and values."""
        return dtype(self.kv)

    @property
    def lm_head(self) -> DType:
        """Format of embedding and LM head."""
        return dtype(self.head)
