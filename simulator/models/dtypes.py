"""Number formats: how many bits a stored weight takes, and in which precision it is multiplied.

A quantised format stores groups of weights with their scales, so its bits per weight are not a whole
number: int4 with groups of 128 (AWQ, GPTQ) has a 16-bit scale and a 4-bit zero point per group,
4 + 20/128 = 4.156 bits; MXFP4 has an 8-bit scale per 32 (OCP microscaling 1.0), NVFP4 one per 16;
the K-quants of llama.cpp nest scales in super-blocks of 256 (ggml-quants), its i-quants index code books. A
llama.cpp file mixes formats: names that end in _s, _m or _l are whole-file averages (quantize README, Llama 2 7B).
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
    weight-only: weights are dequantised and multiplied in 16 bits). *streamed*: no law is fitted to it, a product
    takes what reading so many bits does, and its rows in 16 bits. *split*: the product is done in two parts, columns of
    outliers in 16 bits, the others in int8 (LLM.int8(), arXiv 2208.07339).
    """

    name: str
    bits: float
    law: str
    streamed: bool = False
    split: bool = False

    @property
    def bytes(self) -> float:
        """Bytes per weight, scales included."""
        return self.bits / 8


GGUF_BITS: Mapping[str, float] = MappingProxyType(
    {
        "q8_0": 8.5,
        "q6_k": 6.5625,
        "q5_1": 6.0,
        "q5_0": 5.5,
        "q5_k": 5.5,
        "q5_k_m": 5.68,
        "q5_k_s": 5.52,
        "q4_1": 5.0,
        "q4_0": 4.5,
        "q4_k": 4.5,
        "q4_k_m": 4.84,
        "q4_k_s": 4.58,
        "q3_k": 3.4375,
        "q3_k_l": 4.27,
        "q3_k_m": 3.91,
        "q3_k_s": 3.5,
        "q2_k": 3.35,
        "iq4_nl": 4.5,
        "iq4_xs": 4.25,
        "iq3_m": 3.66,
        "iq3_s": 3.44,
        "iq3_xs": 3.3,
        "iq3_xxs": 3.06,
        "iq2_m": 2.7,
        "iq2_s": 2.5,
        "iq2_xs": 2.31,
        "iq2_xxs": 2.06,
        "iq1_m": 1.75,
        "iq1_s": 1.56,
    }
)
"""Bits per weight of llama.cpp's formats: block layouts of ggml-quants for the plain ones, ``llama-quantize`` (help and
README) for mixtures and i-quants."""


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
        ("fp8_wo", 8.0, "fp8_wo"),  # on devices that do not multiply in fp8
        ("nvfp4_wo", 4 + 8 / 16, "fp4_wo"),  # on devices that do not multiply in fp4
        (
            "nf4",
            4 + 8 / 64 + 32 / (64 * 256),
            "int4_wo",
        ),  # QLoRA, arXiv 2305.14314: doubly quantised scales of 64
    ]
    formats = {name: DType(name, bits, law) for name, bits, law in rows}
    formats["llm_int8"] = DType("llm_int8", 8.0, "int8", split=True)
    return formats | {name: _gguf(name, bits) for name, bits in GGUF_BITS.items()}


def _gguf(name: str, bits: float) -> DType:
    return DType(name, bits, "int4_wo" if bits < 6 else "int8_wo", streamed=True)


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
    "w4a4": "nvfp4",
    "w8a16": "int8_wo",
    "w8a8_fp8": "fp8",
    "w8a8_int8": "int8",
    "smoothquant": "int8",
    "llm.int8()": "llm_int8",
    "llm.int8": "llm_int8",
    "bnb_int8": "llm_int8",
    "bitsandbytes": "nf4",
    "bnb_nf4": "nf4",
    "bnb_4bit": "nf4",
    "deepseek_fp8": "fp8_block",
}
QUANTISERS = ("gptq", "awq", "autoawq", "gptqmodel", "marlin", "gguf", "sq", "smoothquant", "weight_only")
"""Names of methods that people put before or after a format: ``gptq-int4``, ``int8-weight-only``."""


def dtype(name: str) -> DType:
    """The format called *name* (``bf16``, ``bfloat16``, ``int4_wo``, ``q4_k_m``...)."""
    key = name.lower().replace("-", "_").removeprefix("torch.")
    key = _ALIASES.get(key, key)
    if key not in DTYPES:
        key = _without_method(key)
    if key not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[key]


def _without_method(key: str) -> str:
    """The format in a name that also says how it was made; GPTQ and AWQ in 8 bits are weight-only."""
    weight_only = any(method in key for method in ("gptq", "awq", "weight_only"))
    for method in QUANTISERS:
        key = key.removeprefix(f"{method}_").removesuffix(f"_{method}")
    key = {"4bit": "int4", "8bit": "int8"}.get(key, key)
    return "int8_wo" if key == "int8" and weight_only else _ALIASES.get(key, key)


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
