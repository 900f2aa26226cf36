"""How the GPUs of a box reach each other: a property of the box, not of the card.

``nvlink``: every pair over NVLink, as behind NVSwitch. ``nvlink-bridge``: NVLink joins pairs, so that more than two
GPUs meet over PCIe: on a box with bridged A100, NCCL's bus bandwidth falls from 208 GB/s with two GPUs to 20 with three
(NVIDIA/nccl-tests issue 178). ``pcie``: no NVLink; a ring runs over PCIe and the host.

What a ring over PCIe reaches is up to the host. Published runs on boxes of A100 PCIe and L40S (PCIe 4.0) with 2, 4 and
8 GPUs and of RTX PRO 6000 (PCIe 5.0) with 2 all show about 16 GB/s, half of PCIe 4.0 (`calibrate.fit.links`); the
cards' own generation does not show. Other boxes differ both ways: NCCL alone reaches 35 and 28 GB/s with four and
eight RTX 5090 (NVIDIA/nccl issue 1639), and where GPUs share a path far less is left, 19, 4 and 2 GB/s with 2, 4 and 8
GPUs of the L40S box whose operators were measured. So the figure can be stated: the bus bandwidth that
``all_reduce_perf`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwprofiles import HardwareProfile
from simulator.errors import ConfigurationError

__all__ = ["Interconnect", "InterconnectName", "find_interconnect", "host_rate"]

InterconnectName = Literal["nvlink", "nvlink-bridge", "pcie"]
GB = 1e9
PCIE_4 = 31.5e9
"""PCIe 4.0 x16, one direction, B/s, after line coding."""


def host_rate(profile: HardwareProfile) -> float:
    """PCIe rate between card and host that collectives see, one direction, B/s."""
    return min(profile.pcie_bandwidth, PCIE_4)


@dataclass(frozen=True)
class Interconnect:
    """*name* as above; *ring_bandwidth* of the ring over PCIe, B/s, where it is known. *stated*: by the user, which
    counts more than what was measured on the profile's own box."""

    name: str
    ring_bandwidth: float | None = None
    stated: bool = False

    def over_pcie(self, num_gpus: int) -> bool:
        """Whether a ring of *num_gpus* needs PCIe."""
        return self.name == "pcie" or (self.name == "nvlink-bridge" and num_gpus > 2)

    def link_bandwidth(self, profile: HardwareProfile) -> float:
        """The fastest path between two neighbours, one direction, B/s."""
        return profile.link_bandwidth if self.name != "pcie" else self.ring_bandwidth or host_rate(profile)


def find_interconnect(
    profile: HardwareProfile, stated: str | None = None, ring_gbs: float | None = None
) -> Interconnect:
    """What is *stated* of the box, else what the card comes with; *ring_gbs* in GB/s."""
    name = stated or profile.interconnect
    if name != "pcie" and not profile.has_nvlink:
        raise ConfigurationError(f"interconnect {name}: {profile.name} has no NVLink")
    if ring_gbs is not None and name == "nvlink":
        raise ConfigurationError(
            f"interconnect_bandwidth {ring_gbs:g}: is that of a ring over PCIe; {profile.name} is joined by NVLink"
        )
    known = stated is not None or ring_gbs is not None
    return Interconnect(name, None if ring_gbs is None else ring_gbs * GB, known)
