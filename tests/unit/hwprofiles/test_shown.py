"""``sim gpus show``: what is known of a device and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hwprofiles import load_profile
from simulator.cli.gpus import show


def test_a_measured_cpu_is_shown_without_what_nobody_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its power and cache were not measured; it has cores and ranks, and no SMs, NVLink or PCIe."""
    profile = load_profile("l4").model_dump(mode="json", exclude_none=True)
    profile |= {"name": "my-cpu", "aliases": [], "vendor": "unknown", "architecture": "cpu"}
    for name in ("tdp_watts", "l2_bytes", "price"):
        profile["datasheet"].pop(name, None)
    profile["datasheet"] |= {"peak_flops": {"bf16": 1.5e11}, "num_sms": 8, "memory_bandwidth": 4e10}
    (tmp_path / "my-cpu.yaml").write_text(yaml.safe_dump(profile))
    show(str(tmp_path / "my-cpu.yaml"))
    sheet = capsys.readouterr().out.split("law ")[0]
    assert "my-cpu (cpu, without a datasheet)\n" in sheet
    assert "bf16 0.15 TFLOP/s" in sheet
    assert "chip       8 cores\n" in sheet
    assert "between ranks not measured" in sheet
    assert not any(word in sheet for word in ("SMs", "NVLink", "PCIe", "L2", " W\n", "also:"))


def test_a_datasheet_is_shown_in_its_units(capsys: pytest.CaptureFixture[str]) -> None:
    show("h200")
    sheet = capsys.readouterr().out
    assert "4.8 TB/s" in sheet
    assert "132 SMs, L2 50 MiB, 700 W" in sheet
    assert "NVLink 450 GB/s, PCIe 63 GB/s" in sheet
