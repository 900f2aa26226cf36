"""The measurements that a calibrated profile carries along, each beside what its law says of the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwprofiles import HardwareProfile, Law
from simulator.steptime.laws import bind

__all__ = ["SIZE", "MeasuredPoint", "measured_points"]

SIZE = {
    "gemm": ("m", "tokens"),
    "prefill_attention": ("chunk", "new tokens of a sequence"),
    "decode_attention": ("sum_context", "tokens of context in the batch"),
    "moe": ("num_tokens", "tokens"),
    "elementwise": ("moved", "bytes"),
    "kv_write": ("moved", "bytes"),
    "sampling": ("moved", "bytes"),
    "all_reduce": ("message", "bytes"),
    "all_gather": ("message", "bytes"),
    "reduce_scatter": ("message", "bytes"),
    "all_to_all": ("message", "bytes"),
    "send_recv": ("message", "bytes"),
    "swap_out": ("moved", "bytes"),
    "swap_in": ("moved", "bytes"),
    "block_copy": ("moved", "bytes"),
}
"""What a measurement of each family is drawn over: an argument of its law, and in words."""


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One shape: seconds *measured*, and *fitted*, by the law of the profile.

    *x* is the argument that `SIZE` names; *shape* holds all of them by name.
    """

    family: str
    dtype: str
    variant: str
    x: float
    measured: float
    fitted: float
    shape: dict[str, float]

    @property
    def law(self) -> str:
        """The law's name: ``gemm/bf16``, ``all_reduce/bf16/nccl``."""
        return "/".join(filter(None, (self.family, self.dtype, self.variant)))

    @property
    def error(self) -> float:
        """Fitted / measured - 1."""
        return self.fitted / self.measured - 1.0


def measured_points(profile: HardwareProfile) -> list[MeasuredPoint]:
    """Every measurement that *profile* carries, by law and then by `x`; none of a profile that was not calibrated."""
    found = [point for law in profile.laws for point in _points(profile, law)]
    return sorted(found, key=lambda point: (point.law, point.x, point.measured))


def _points(profile: HardwareProfile, law: Law) -> Iterator[MeasuredPoint]:
    if law.points is None:
        return
    seconds, stated = np.array(law.points.seconds), law.points.arguments
    names, columns = list(stated), [np.broadcast_to(values, seconds.shape) for values in stated.values()]
    predicted = np.asarray(bind(profile, law)(*columns), dtype=float)
    size, _ = SIZE[law.family]
    for row, (measured, fitted) in enumerate(zip(seconds.tolist(), predicted.tolist(), strict=True)):
        shape = {name: float(column[row]) for name, column in zip(names, columns, strict=True)}
        yield MeasuredPoint(law.family, law.dtype, law.variant, shape[size], measured, fitted, shape)
