"""The device at hand: its name and versions, its clock and temperature, and the clock that times it.

On a CPU the time is that of the thread, with one torch thread: on a shared machine wall time also counts who
else runs. A GPU's clock is read after every shot; a sample taken well below the highest clock seen so far is
from a device that throttles.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Reading", "Thermometer", "describe_device", "read_gpu", "thread_clock"]

DROP = 0.9
"""Share of the highest clock below which a device counts as throttled."""


@dataclass(frozen=True)
class Reading:
    """Clock of the cores in MHz and temperature in degrees Celsius."""

    clock_mhz: float
    temperature_c: float


def read_gpu() -> Reading | None:
    """What ``nvidia-smi`` says now; None where it says nothing."""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        clock, temperature = text.splitlines()[0].split(",")
        return Reading(float(clock), float(temperature))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


class Thermometer:
    """Tells throttled readings from others; *read* gives the device's state, None where it has none to tell."""

    def __init__(self, read: Callable[[], Reading | None]) -> None:
        self._read, self._highest = read, 0.0

    def read(self) -> tuple[Reading | None, bool]:
        """The state now, and whether the clock has dropped."""
        reading = self._read()
        if reading is None:
            return None, False
        self._highest = max(self._highest, reading.clock_mhz)
        return reading, reading.clock_mhz < DROP * self._highest


def thread_clock(device: torch.device) -> Callable[[], float]:
    """Seconds: of this thread on a CPU, of the wall beside a GPU."""
    return time.perf_counter if device.type == "cuda" else time.thread_time


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, memory and versions: what a figure depends on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    if device.type != "cuda":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "device": _cpu_name(),
            "kind": "cpu",
            "memory_bytes": memory,
            "versions": versions,
            "units": 1,
        }
    found = torch.cuda.get_device_properties(device)
    versions |= {"cuda": str(torch.version.cuda), "driver": _driver()}
    return {
        "device": found.name,
        "kind": "cuda",
        "memory_bytes": found.total_memory,
        "versions": versions,
        "units": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = re.findall(r"model name\s*:\s*(.+)", file.read())
    except OSError:
        names = []
    return f"CPU {names[0] if names else platform.machine()}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not read"
