"""The hand calculation that is often made for a dense model, as a named variant beside our own count.

It counts embedding and layer matrices (no biases, norms or LM head), attention over the full square and not
the causal half, and divides FLOPs by the peak: for Qwen2.5-32B and 1024 prompt tokens 31.98 B parameters,
65.28 TFLOP of prefill, 0.06 TFLOP per decoded token and 441 ms on an H20 (148 TFLOP/s). Kept to be compared
with, and to say what it misses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.models import ModelSpec

__all__ = ["HandCalculation"]


@dataclass(frozen=True)
class HandCalculation:
    """*peak* FLOP/s and *bandwidth* B/s are those of one of *num_gpus*; weights are taken in 16 bits."""

    model: ModelSpec
    prompt: int
    batch: int
    peak: float
    bandwidth: float
    num_gpus: int = 1

    @property
    def layer_parameters(self) -> int:
        """Matrices of the layers that a token passes."""
        h = self.model.hidden_size
        total = 0
        for layer in self.model.layers:
            gemms = (*layer.attention.gemms(h), *layer.mlp.dense_gemms(h))
            routed = layer.mlp.topk * sum(g.n * g.k for g in layer.mlp.expert_gemms(h))
            total += layer.count * (sum(g.n * g.k for g in gemms) + routed)
        return total

    @property
    def parameters(self) -> int:
        """Embedding and layer matrices."""
        return self.layer_parameters + self.model.vocab_size * self.model.hidden_size

    @property
    def prefill_flops(self) -> float:
        """2 per parameter and token, and 4·S²·heads·head_dim per layer."""
        square = sum(
            4.0 * layer.count * layer.attention.num_heads * layer.attention.head_dim * self.prompt**2
            for layer in self.model.layers
        )
        return self.batch * (2.0 * self.layer_parameters * self.prompt + square)

    @property
    def flops_per_token(self) -> float:
        """2 per parameter; attention to the context is left out."""
        return 2.0 * self.layer_parameters

    @property
    def ttft_s(self) -> float:
        """Prefill FLOPs at peak."""
        return self.prefill_flops / (self.peak * self.num_gpus)

    @property
    def tpot_s(self) -> float:
        """FLOPs of one decoded token of every sequence at peak."""
        return self.batch * self.flops_per_token / (self.peak * self.num_gpus)

    @property
    def weight_read_s(self) -> float:
        """What a decode step takes at least: every weight read once."""
        head = self.model.vocab_size * self.model.hidden_size
        return 2.0 * (self.layer_parameters + head) / (self.bandwidth * self.num_gpus)

    @property
    def misses(self) -> list[str]:
        """What it leaves out, with its size here."""
        model = self.model
        causal = self.batch * model.prefill_flops(self.prompt)
        stored = model.total_parameters - self.parameters
        return [
            self._bound(),
            f"attention is causal, half the square: our complete causal count is {causal / 1e12:.2f} TFLOP",
            f"the LM head: {model.lm_head.flops_per_token / 1e9:.2f} GFLOP per sampled token",
            f"{stored / 1e9:.2f} B stored parameters: LM head, norms, biases, experts not visited",
            "no kernel reaches the peak; launches, communication, host work and queueing take time",
        ]

    def _bound(self) -> str:
        read, work = 1e3 * self.weight_read_s, 1e3 * self.tpot_s
        if read <= work:
            return f"at batch {self.batch} FLOPs take longer than reading the weights once, {read:.2f} ms"
        return (
            f"decode at batch {self.batch} is bound by bandwidth, not by FLOPs: reading the weights takes "
            f"{read:.2f} ms, {read / work:.0f} times the {work:.2f} ms of its FLOPs"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, SI units."""
        names = (
            "parameters",
            "prefill_flops",
            "flops_per_token",
            "ttft_s",
            "tpot_s",
            "weight_read_s",
            "misses",
        )
        return {name: getattr(self, name) for name in names}
