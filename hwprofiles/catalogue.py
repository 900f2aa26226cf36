"""The 30 devices: profile name, aliases, family, the relative whose laws stand in, and what the table lacks.

``visible`` is the capacity that ``torch.cuda`` reports, GiB, as printed in public out-of-memory messages
("GPU 0 has a total capacity of 79.11 GiB"); where none was found 0.985 of the nominal capacity is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CATALOGUE", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table of datasheets does not say about one device."""

    name: str
    aliases: tuple[str, ...]
    architecture: str
    relative: str | None
    visible: float | None = None
    vendor: str = "nvidia"
    supplement: dict[str, float] = field(default_factory=dict)
    supplement_source: str = ""
    bridge: str | None = None
    """NVLink that joins two cards only: ``optional`` or ``fitted``."""


A100, L40S, B200 = "a100-sxm-80gb", "l40s-48gb", "b200-sxm-180gb"
H100, H200 = "h100-sxm-80gb", "h200-sxm-141gb"

CATALOGUE: dict[str, Entry] = {
    "T4": Entry("t4-16gb", ("t4",), "turing", A100, 14.56),
    "V100-PCIe-16/32": Entry("v100-pcie-16gb", ("v100-pcie",), "volta", A100, 15.77),
    "V100-SXM2-16/32": Entry("v100-sxm2-16gb", ("v100", "v100-sxm2"), "volta", A100, 15.77),
    "A10": Entry("a10-24gb", ("a10",), "ampere", A100, 22.06),
    "A10G": Entry("a10g-24gb", ("a10g",), "ampere", A100, 22.06),
    "A30": Entry("a30-24gb", ("a30",), "ampere", A100, 23.5, bridge="optional"),
    "A40": Entry("a40-48gb", ("a40",), "ampere", A100, 44.35, bridge="optional"),
    "RTX-A6000": Entry("rtx-a6000-48gb", ("a6000", "rtx-a6000"), "ampere", A100, 47.43, bridge="optional"),
    "A100-PCIe-40": Entry("a100-pcie-40gb", ("a100-40gb-pcie",), "ampere", A100, 39.39, bridge="optional"),
    "A100-SXM-40": Entry("a100-sxm-40gb", ("a100-40gb",), "ampere", A100, 39.39),
    "A100-PCIe-80": Entry("a100-pcie-80gb", ("a100-pcie",), "ampere", A100, 79.15, bridge="optional"),
    "A100-SXM-80": Entry(A100, ("a100", "a100-sxm", "a100_sxm", "a100-80gb"), "ampere", None, 79.15),
    "L4": Entry("l4-24gb", ("l4",), "ada", L40S, 22.03),
    "L40S": Entry(L40S, ("l40s",), "ada", None, 44.4),
    "H20": Entry("h20-96gb", ("h20",), "hopper", H100, 95.0),
    "H800-SXM": Entry("h800-sxm-80gb", ("h800", "h800-sxm"), "hopper", H100, 79.11),
    "H100-PCIe": Entry("h100-pcie-80gb", ("h100-pcie",), "hopper", H100, 79.11, bridge="optional"),
    "H100-SXM": Entry(H100, ("h100", "h100-sxm", "h100_sxm", "h100-80gb"), "hopper", H200, 79.11),
    "H100-NVL": Entry("h100-nvl-94gb", ("h100-nvl",), "hopper", H100, 93.0, bridge="fitted"),
    "H200-SXM": Entry(H200, ("h200", "h200-sxm", "h200_sxm"), "hopper", H100, 139.8),
    "GH200-96": Entry("gh200-96gb", ("gh200", "gh200-96"), "hopper", H100, 94.5),
    "GH200-144": Entry("gh200-144gb", ("gh200-144", "gh200-141gb"), "hopper", H200),
    "B200-SXM": Entry(B200, ("b200", "b200-sxm", "b200_sxm"), "blackwell", H200, 178.35),
    "GB200": Entry("gb200-186gb", ("gb200",), "blackwell", B200),
    "B300-SXM": Entry("b300-sxm-288gb", ("b300", "b300-sxm"), "blackwell", B200, 267.7),
    "RTX-4090": Entry("rtx-4090-24gb", ("rtx4090", "rtx-4090", "4090"), "ada", L40S, 23.64),
    "RTX-5090": Entry("rtx-5090-32gb", ("rtx5090", "rtx-5090", "5090"), "blackwell", L40S, 31.36),
    "RTX-PRO-6000-Server": Entry(
        "rtx-pro-6000-server-96gb",
        ("rtx-pro-6000", "rtxpro6000", "rtx-pro-6000-server"),
        "blackwell",
        L40S,
        94.97,
        supplement={"num_sms": 188, "l2_mb": 128},
        supplement_source="SMs and L2 from the vendor's architecture paper, not in the table",
    ),
    "MI300X": Entry("mi300x-192gb", ("mi300x",), "cdna3", H100, 191.98, vendor="amd"),
    "MI325X": Entry("mi325x-256gb", ("mi325x",), "cdna3", H100, 255.98, vendor="amd"),
}
