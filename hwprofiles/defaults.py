"""Laws for what no data set holds, each with the reason for its numbers; always labelled ``default``."""

from __future__ import annotations

from hwprofiles.schema import Law

__all__ = ["DEFAULT_LAWS", "DTYPE_RELATIVES"]


def default_law(
    family: str, dtype: str, form: str, text: str, spread: float, variant: str = "", **numbers: float
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
GRAPH = "mid-field of the measured devices"
RING = "ring over the datasheet link at 0.8 of its rate"

DEFAULT_LAWS: tuple[Law, ...] = (
    default_law("gemm", "bf16", "pnorm", GRAPH, 0.2, t0=4.0e-6, ec=0.75, eb=0.82, p=2.5),
    default_law("prefill_attention", "bf16", "pnorm", GRAPH, 0.25, t0=1.2e-5, ec=0.55, eb=0.6, p=1.5),
    default_law("decode_attention", "bf16", "pnorm_seq", GRAPH, 0.25, t0=1.1e-5, ec=0.5, eb=0.85, p=1.7, tb=1e-7, skew=0.04),
    default_law("moe", "bf16", "pnorm", GRAPH, 0.25, t0=2.0e-5, ec=0.5, eb=0.8, p=2.0),
    default_law("elementwise", "bf16", "linear", PEER, 0.3, t0=3.0e-6, eb=0.8),
    default_law("kv_write", "bf16", "linear", PEER, 0.3, t0=3.0e-6, eb=0.6),
    default_law("sampling", "fp32", "linear", "logits read five times in fp32 by sort-free kernels", 0.5, t0=4.0e-5,
                eb=0.6, passes=5.0),
    default_law("all_reduce", "bf16", "ring", RING, 0.3, variant="nccl", t0=1.5e-5, per_gpu=4e-7, eb=0.8),
    default_law("all_reduce", "bf16", "ring", RING, 0.3, variant="custom", t0=5.0e-6, per_gpu=2e-7, eb=0.7),
    default_law("all_gather", "bf16", "ring", RING, 0.3, variant="nccl", t0=1.5e-5, per_gpu=4e-7, eb=0.8),
    default_law("reduce_scatter", "bf16", "ring", RING, 0.3, variant="nccl", t0=1.5e-5, per_gpu=4e-7, eb=0.8),
    default_law("all_to_all", "bf16", "ring", RING, 0.3, variant="nccl", t0=1.5e-5, per_gpu=4e-7, eb=0.8),
)  # fmt: skip

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
