"""What a step of a real engine takes beyond its operators: few numbers per system, fitted to serving measurements.

Operator laws are measured one kernel at a time, on kernels of one stack. A serving engine has small kernels between
them, host work the device waits for, other kernels than those measured, and prompts that are launched eagerly. The
numbers are in ``data/engine_costs.yaml``, which ``sim calibrate fit-serving`` writes with source, date and held-out
error; a system that is not in it has none of these costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from simulator.steptime.operators import Operator

__all__ = ["EngineCosts", "Spread", "engine_costs", "engine_costs_file", "moe_law"]


@dataclass(frozen=True)
class Spread:
    """Standard deviations of ln(measured / predicted): of step times (TPOT), and of TTFT."""

    step: float
    ttft: float


UNFITTED = Spread(0.25, 0.5)
"""Of engines without serving measurements. Assumed: about twice that of the fitted ones."""
QUANTISED = ("fp8", "fp4")
"""Products that quantise their activations."""


@dataclass(frozen=True)
class EngineCosts:
    """Seconds, and factors on the profile's laws.

    *step_s*, *seq_s*, *token_s*: host work per step, sequence and new token that the device waits for.
    *layer_s*: small kernels and gaps of a layer. *prefill_layer_s*: launching a layer of a batch with prompts.
    *collective_s*: ranks waiting for each other at a collective. *request_s*: front end of a request (HTTP,
    tokenisation, queueing) before the scheduler sees it. *mixed_attention*: extra attention of a batch of
    prompts and decodes, as a share. *fused_quantisation_s*: saved per quantised product, whose law includes a
    separate kernel for the activations. *gemm*, *moe*: this system's kernels over the profile's law, by law;
    *attention* likewise. *moe_token_s*: routing and dequantisation per token, layer and GPU, by law. *spread*: how far
    predictions are off for a (gpu, model) that the fit has not seen; *seen*: for other configurations of one it has.
    """

    step_s: float = 0.0
    seq_s: float = 0.0
    token_s: float = 0.0
    layer_s: float = 0.0
    prefill_layer_s: float = 0.0
    collective_s: float = 0.0
    request_s: float = 0.0
    mixed_attention: float = 0.0
    fused_quantisation_s: float = 0.0
    attention: float = 1.0
    gemm: Mapping[str, float] = field(default_factory=dict)
    moe: Mapping[str, float] = field(default_factory=dict)
    moe_token_s: Mapping[str, float] = field(default_factory=dict)
    spread: Spread = UNFITTED
    seen: Mapping[str, Spread] = field(default_factory=dict)
    source: str = ""

    def exposed_s(self, rows: int, new_tokens: int) -> float:
        """Host work of a step that the device waits for."""
        return self.step_s + self.seq_s * rows + self.token_s * new_tokens

    def spread_for(self, gpu: str, model: str) -> Spread:
        """How far a prediction for *model* on *gpu* is off."""
        return self.seen.get(f"{gpu}/{model}", self.spread)

    def operator_seconds(self, operator: Operator, law: Any, m: Any, native_fp4: bool) -> Any:
        """*law* seconds of all executions of *operator* on *m* rows, as this engine's kernels run it."""
        if operator.axis == "rows":
            return law
        if operator.kind == "gemm":
            saved = self.fused_quantisation_s * operator.count if operator.dtype in QUANTISED else 0.0
            return law * self.gemm.get(operator.dtype, 1.0) - saved
        if operator.kind == "moe":
            name = moe_law(operator.dtype, native_fp4)
            ranks = operator.experts[3] * operator.experts[4]
            return (
                law * self.moe.get(name, 1.0) + self.moe_token_s.get(name, 0.0) * operator.count * m / ranks
            )
        if operator.kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            return law + self.collective_s * operator.count
        return law


def moe_law(dtype: str, native_fp4: bool) -> str:
    """Four-bit experts run natively where the device multiplies in fp4, else they are dequantised."""
    return "fp4" if dtype == "fp4_wo" and native_fp4 else dtype


def engine_costs(system: str) -> EngineCosts | None:
    """The costs of the traits entry *system*, if they were fitted."""
    entry = engine_costs_file().get("systems", {}).get(system)
    if entry is None:
        return None
    seen = {name: Spread(**spread) for name, spread in entry["seen"].items()}
    return EngineCosts(**{**entry, "spread": Spread(**entry["spread"]), "seen": seen})


@cache
def engine_costs_file() -> dict[str, Any]:
    """The whole file: ``systems``, and what the fit says of itself."""
    text = (files("simulator.steptime") / "data" / "engine_costs.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
