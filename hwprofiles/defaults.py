"""Laws for what no data set holds, each with the reason for its numbers; always labelled ``default``."""

from __future__ import annotations

from hwprofiles.schema import Law

__all__ = ["DEFAULT_LAWS", "DTYPE_RELATIVES"]


def default_law(
    family: str, dtype: str, form: str, text: str, spread: float, numbers: dict[str, float], variant: str = ""
) -> Law:
    """A law that nobody has fitted, with the *text* that says why."""
    return Law.model_validate(
        {
            "family": family,
            "dtype": dtype,
            "variant": variant,
            "form": form,
            "coefficients": numbers,
            "spread": spread,
            "source": {"kind": "default", "text": text},
        }
    )


PEER = "aiconfigurator's element-wise rule, bytes / (0.8 W) + 3 us"
MID = "mid-field of the measured devices"
RING = "ring over the datasheet link at 0.8 of its rate"
LINK = "the datasheet's link, no latency"
OVER_PCIE = (
    "ring over PCIe: latency as measured on an L40S box, bandwidth from published runs on L40S, A100 PCIe and RTX PRO "
    "6000 with 2 to 8 GPUs (sim calibrate fit-links)"
)
SAMPLER = "logits read five times in fp32 by sort-free kernels, assumed"
PINNED = (
    "0.8 of the datasheet's PCIe rate between pinned host memory and the device, no cost of a call, assumed"
)
COPIED = "0.8 of the memory's rate, no cost of a call, assumed"
STREAMED = {"t0": 0.0, "call": 0.0, "eb": 0.8}
SHARES = {"eb_2": 0.8, "eb_4": 0.8, "eb_8": 0.8, "p": 1.0}
NCCL = {"t0_2": 7e-6, "t0_4": 1.1e-5, "t0_8": 1.8e-5, **SHARES}
CUSTOM = {"t0_2": 4.5e-6, "t0_4": 5e-6, "t0_8": 6e-6, **SHARES}
PCIE = {"t0_2": 6.5e-6, "t0_4": 1.05e-5, "t0_8": 1.95e-5, "eb_2": 0.52, "eb_4": 0.52, "eb_8": 0.52, "p": 0.8}
EAGER = {"t0_2": 2.1e-5, "t0_4": 2.2e-5, "t0_8": 2.4e-5, **SHARES}
TILED = {
    "t0": 4.0e-6,
    "eb": 0.82,
    "p": 2.0,
    "wave": 0.4,
    "ec_256": 0.8,
    "ec_128": 0.7,
    "ec_64": 0.5,
    "ec_32": 0.35,
}
PREFILL = {"t0": 1.2e-5, "ec": 0.6, "eb": 0.6, "p": 1.5, "tile": 2e-9, "pack": 0.0}
DECODE = {"t0": 1.1e-5, "ec": 0.4, "eb": 0.85, "p": 1.7, "unit": 2.5e-8, "skew": 0.04}
MOE = {"t0": 2.0e-5, "ec": 0.6, "eb": 0.8, "ea": 0.7, "p": 1.5}

DEFAULT_LAWS: tuple[Law, ...] = (
    default_law("gemm", "bf16", "tiled", MID, 0.2, TILED),
    default_law("prefill_attention", "bf16", "tiles", MID, 0.25, PREFILL),
    default_law("decode_attention", "bf16", "units", MID, 0.25, DECODE),
    default_law("moe", "bf16", "experts", MID, 0.25, MOE),
    default_law("elementwise", "bf16", "stream", PEER, 0.3, {"t0": 3.0e-6, "eb": 0.8}),
    default_law("kv_write", "bf16", "stream", PEER, 0.3, {"t0": 3.0e-6, "eb": 0.6}),
    default_law("sampling", "fp32", "stream", SAMPLER, 0.5, {"t0": 4.0e-5, "eb": 0.6, "passes": 5.0}),
    default_law("all_reduce", "bf16", "ring", RING, 0.3, NCCL, "nccl"),
    default_law("all_reduce", "bf16", "ring", RING, 0.3, CUSTOM, "custom"),
    default_law("all_reduce", "bf16", "ring", RING, 0.3, EAGER, "custom_eager"),
    default_law("all_reduce", "bf16", "ring", OVER_PCIE, 0.3, PCIE, "pcie"),
    default_law("all_gather", "bf16", "ring", RING, 0.3, NCCL, "nccl"),
    default_law("all_gather", "bf16", "ring", OVER_PCIE, 0.3, PCIE, "pcie"),
    default_law("reduce_scatter", "bf16", "ring", OVER_PCIE, 0.3, PCIE, "pcie"),
    default_law("all_to_all", "bf16", "ring", OVER_PCIE, 0.3, PCIE, "pcie"),
    default_law("reduce_scatter", "bf16", "ring", RING, 0.3, NCCL, "nccl"),
    default_law("all_to_all", "bf16", "ring", RING, 0.3, NCCL, "nccl"),
    *(
        default_law(family, "bf16", "copies", PINNED, 0.3, STREAMED, variant)
        for family in ("swap_out", "swap_in")
        for variant in ("", "gathered")
    ),
    default_law("send_recv", "bf16", "link", LINK, 0.3, {"t0": 0.0, "eb": 1.0}),
    default_law("block_copy", "bf16", "copies", COPIED, 0.3, STREAMED),
)

WEIGHT_ONLY = ("int8_wo", "int4_wo", "bf16")

DTYPE_RELATIVES: dict[tuple[str, str], tuple[str, ...]] = {
    ("gemm", "fp16"): ("bf16",),
    ("gemm", "fp8"): ("int8", "bf16"),
    ("gemm", "int8"): ("fp8", "bf16"),
    ("gemm", "fp4"): ("fp8", "bf16"),
    ("gemm", "int8_wo"): WEIGHT_ONLY,
    ("gemm", "int4_wo"): WEIGHT_ONLY,
    ("gemm", "fp8_wo"): WEIGHT_ONLY,
    ("gemm", "fp4_wo"): ("int4_wo", "int8_wo", "bf16"),
    ("prefill_attention", "fp16"): ("bf16",),
    ("prefill_attention", "fp8"): ("bf16",),
    ("prefill_attention", "int8"): ("fp8", "bf16"),
    ("decode_attention", "fp16"): ("bf16",),
    ("decode_attention", "fp8"): ("bf16",),
    ("decode_attention", "int8"): ("fp8", "bf16"),
    ("moe", "fp16"): ("bf16",),
    ("moe", "fp8"): ("bf16",),
    ("moe", "int8"): ("fp8", "bf16"),
    ("moe", "fp4"): ("fp8", "bf16"),
    ("moe", "int8_wo"): ("bf16",),
    ("moe", "int4_wo"): ("bf16",),
    ("moe", "fp8_wo"): ("bf16",),
    ("moe", "fp4_wo"): ("bf16",),
}
"""Which measured dtype stands in for one without measurements, nearest first."""
