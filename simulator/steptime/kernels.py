"""Which kernels a forward runs, where an engine has a choice.

`Kernels()` is what every serving engine does today: attention in one pass that keeps its scores on the chip,
element-wise work fused into few kernels, random sampling. The switches say what it would cost without.

Unfused (transformers' PyTorch modules, models/llama/modeling_llama.py; bytes per element of 16 bits, each kernel
reading its inputs and writing its output):

    RMSNorm      to fp32 6, square 8, mean 4, rsqrt 0, scale 8, to 16 bits 6, weight 4   = 36 B in 7 kernels
    residual     6 B in 1 kernel
    rotary       for q and for k: times cos 4, negate half 2, concatenate 4, times sin 4, add 6 = 20 B in 5 kernels each
    SwiGLU       silu 4, times 6 = 10 B per intermediate element in 2 kernels

Sampling is priced relative to the law's five passes over fp32 logits: an argmax reads them once. Top-k and top-p by
sorting read and write pairs of a 4-byte key and an 8-byte index four times (radix sort of 32-bit keys, 8 bits a pass:
96 B) and then take a softmax, a running sum, a mask and a scatter (52 B): 37 passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from simulator.errors import ConfigurationError
from simulator.steptime.lora import LoraSpec
from simulator.steptime.operators import Operator

__all__ = ["FUSED", "SAMPLING", "Kernels"]

LAW_PASSES = 5.0
"""Passes over the logits that the sampling law stands for (``hwprofiles/defaults.py``)."""

SAMPLING: Mapping[str, float] = MappingProxyType({"greedy": 1.0, "random": LAW_PASSES, "top-p": 37.0})
"""Passes over the fp32 logits by kind of sampling."""


@dataclass(frozen=True)
class Kernels:
    """*flash_attention*: scores stay on the chip. *fused*: norms, rotary embedding and activation are one kernel each.

    *sampling* as in `SAMPLING`; *guided* is the share of rows whose logits are masked by a grammar; *lora* what
    adapters add to the projections.
    """

    flash_attention: bool = True
    fused: bool = True
    sampling: str = "random"
    guided: float = 0.0
    lora: LoraSpec | None = None

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING:
            raise ConfigurationError(f"sampling {self.sampling!r}: must be one of {', '.join(SAMPLING)}")
        if not 0 <= self.guided <= 1:
            raise ConfigurationError(f"guided_decoding {self.guided}: must be from 0 to 1")

    def of(self, operators: list[Operator], vocab: int) -> list[Operator]:
        """*operators* of a step with these kernels."""
        if self == FUSED:
            return operators
        return [variant for operator in operators for variant in self._variants(operator, vocab)]

    def extra_launches(self) -> int:
        """Kernels per layer beyond those of a fused one."""
        unfused = 0 if self.fused else 2 * 8 + 10 + 2 - 4
        scores = 0 if self.flash_attention else 2
        return unfused + scores + (0 if self.lora is None else self.lora.kernels_per_layer)

    def _variants(self, operator: Operator, vocab: int) -> Iterator[Operator]:
        if operator.kind == "sampling":
            yield replace(operator, width=operator.width * SAMPLING[self.sampling] / LAW_PASSES)
            if self.guided:  # a bit per token is read, the logits are read and written
                width = self.guided * vocab * (1 / 8 + 8)
                yield Operator("grammar_mask", "sampling", "elementwise", "rows", 1, width=width)
            return
        if not self.fused and operator.name in UNFUSED:
            factor, kernels = UNFUSED[operator.name]
            yield replace(operator, width=operator.width * factor / kernels, count=operator.count * kernels)
            return
        yield operator
        if self.lora is not None:
            yield from self.lora.operators(operator)


FUSED = Kernels()

UNFUSED: Mapping[str, tuple[float, int]] = MappingProxyType(
    {
        "norm": (42 / 8, 8),  # with the residual: 8 bytes per element when fused
        "final_norm": (36 / 4, 7),
        "rotary": (20 / 4, 10),
        "activation": (10 / 6, 2),
    }
)
"""Bytes over those of the fused kernel, and number of kernels."""
