"""Small devices for tests: laws at known efficiency, so that expectations can be worked out by hand."""

from dataclasses import dataclass
from typing import Any

from simulator.steptime import RooflineLaws


@dataclass(frozen=True)
class Peaks:
    """A datasheet: FLOP/s, B/s."""

    flops: float = 989e12
    bandwidth: float = 3.35e12
    link_bandwidth: float = 450e9

    def peak_flops(self, dtype: str) -> float:
        return 2 * self.flops if dtype in ("fp8", "int8") else self.flops


def ideal(scale: float = 1.0) -> RooflineLaws:
    """An ideal device, *scale* times an H100 in every respect."""
    return RooflineLaws(Peaks(989e12 * scale, 3.35e12 * scale, 450e9 * scale))


class Efficient:
    """A real device: *device* at a constant efficiency with a launch of *start* seconds per kernel."""

    def __init__(self, device: RooflineLaws, efficiency: float = 0.7, start: float = 4e-6) -> None:
        self.device, self.efficiency, self.start = device, efficiency, start
        self.bandwidth, self.link_bandwidth = device.bandwidth, device.link_bandwidth
        self.peak_flops = device.peak_flops

    def __getattr__(self, family: str) -> Any:
        law = getattr(self.device, family)
        return lambda *shape: self.start + law(*shape) / self.efficiency


def fast(efficiency: float = 2.0) -> Efficient:
    """A law that promises more than the datasheet: the floor has to hold it back."""
    return Efficient(ideal(), efficiency, 0.0)
