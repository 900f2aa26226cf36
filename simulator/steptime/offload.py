"""Models that are not all on the GPU: weights that stream in, layers or neurons that the CPU computes.

Each forward then has a second part, a roofline of its own over another memory:

    other = max(weight bytes touched / bandwidth, tokens · FLOPs per token / peak) + KV bytes · context / bandwidth
    step  = max(device share, other)  or  device share + other

With the first form the two parts run side by side (loading ahead, or CPU and GPU on the same layer), with the second
one after the other (whole layers here, then there). *touched*: with activation sparsity one token needs only a share
of the weights, and a batch of independent tokens the union, 1 − (1 − share)ⁿ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError
from simulator.models import ModelSpec, Precision
from simulator.models.offload import Offload
from simulator.steptime.kernels import FUSED, Kernels
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.protocol import Laws
from simulator.steptime.steptime import StepTime
from simulator.steptime.traits import HostTraits

__all__ = ["OffloadedStepTime"]

Prefills = Any


class OffloadedStepTime(StepTime):
    """`StepTime` with a second part. The host's share is scaled with the device's."""

    def __init__(
        self,
        offload: Offload,
        model: ModelSpec,
        laws: Laws,
        parallelism: Parallelism | None = None,
        traits: HostTraits | None = None,
        precision: Precision | None = None,
        kernels: Kernels = FUSED,
    ) -> None:
        super().__init__(model, laws, parallelism, traits, precision, kernels)
        if self.parallelism.num_gpus > 1:
            raise ConfigurationError(
                f"weights outside the GPU are modelled for one GPU, not for {self.parallelism.num_gpus}"
            )
        self.offload = offload
        self.device = StepTime(model, laws, parallelism, traits, precision, kernels)

    def seconds(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> float:
        device = self.device.seconds(num_decodes, decode_context, prefills)
        return self._together(device, num_decodes, decode_context, prefills)

    def _together(self, device: float, num_decodes: int, decode_context: int, prefills: Prefills) -> float:
        offload, tokens, context = self.offload, num_decodes, decode_context
        for chunk, before in prefills:
            tokens += chunk
            context += before + chunk
        device *= offload.device_share
        other = offload.seconds(tokens, context)
        return max(device, other) if offload.overlapped else device + other

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float] | NDArray[np.float64]:
        offload = self.offload
        device = np.asarray(self.device.segment(num_decodes, decode_context, n)) * offload.device_share
        slope = offload.kv_bytes_per_token / offload.bandwidth * num_decodes
        other = offload.seconds(num_decodes, decode_context) + slope * np.arange(n)
        return np.asarray(np.maximum(device, other) if offload.overlapped else device + other)

    def breakdown(self, num_decodes: int, decode_context: int, prefills: Prefills = ()) -> dict[str, float]:
        share = self.offload.device_share
        whole = self.device.breakdown(num_decodes, decode_context, prefills)
        parts = {name: share * seconds for name, seconds in whole.items()}
        parts["offload"] = self.seconds(num_decodes, decode_context, prefills) - sum(parts.values())
        return parts

    def _with(self, laws: Laws, traits: HostTraits) -> StepTime:
        parts = (self.parallelism, traits, self.precision, self.kernels)
        return OffloadedStepTime(self.offload, self.model, laws, *parts)

    def _at_peak(self) -> StepTime:
        traits = HostTraits(layer_overhead_s=0.0)
        parts = (self._ideal_laws, self.parallelism, traits, self.precision)
        return OffloadedStepTime(self.offload, self.model, *parts)
