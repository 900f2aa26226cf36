"""Whether a model can be built at all, asked before minutes are spent on drawing or reading its weights.

Counted are the weights and the KV cache that was asked for. What a machine can
give is the kernel's own estimate (``MemAvailable``) within the limit of its control group; a GPU tells its free bytes.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from engine.config import DecoderConfig
from engine.parallel import TensorParallel
from engine.settings import EngineSettings
from simulator.errors import CapacityError

__all__ = ["check_room", "free_bytes"]

GIB = 2**30
GROUP = Path("/sys/fs/cgroup")
LEAST_BYTES = 0.5
"""Of a quantised weight, at least."""


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be taken on *device*; infinity where nothing says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(_machine(), _group())


def check_room(
    settings: EngineSettings, config: DecoderConfig, device: torch.device, parallel: TensorParallel
) -> None:
    """Raise `CapacityError` where the weights and the cache cannot fit *device*, what is needed and there in one line.

    Ranks on CPUs share one memory: their first one asks for all.
    """
    if device.type != "cuda" and parallel.rank:
        return
    ranks = parallel.size if device.type == "cuda" else 1
    dtype = settings.torch_dtype(config)
    kept = LEAST_BYTES if settings.quantization else dtype.itemsize
    weights, cache = config.num_weights * kept / ranks, _cache_bytes(settings, config, device, ranks)
    free = free_bytes(device)
    if weights + cache > free:
        where = "the GPU" if device.type == "cuda" else "this machine"
        raise CapacityError(
            f"model {settings.name}: needs {(weights + cache) / GIB:.3g} GiB ({weights / GIB:.3g} for weights in "
            f"{settings.quantization or str(dtype).removeprefix('torch.')}, {cache / GIB:.2g} for the KV cache), and "
            f"{where} has {free / GIB:.3g} GiB free"
        )


def _cache_bytes(settings: EngineSettings, config: DecoderConfig, device: torch.device, ranks: int) -> float:
    """The blocks that were asked for; where a GPU may take what is left, none."""
    itemsize = settings.torch_dtype(config).itemsize
    block = settings.block_size * config.kv_bytes_per_token(itemsize, ranks)
    if settings.num_gpu_blocks is None:
        return 0.0 if device.type == "cuda" else float(settings.cpu_cache_bytes)
    on_host = 0 if device.type == "cuda" else settings.swap_space_blocks
    return float(block * (settings.num_gpu_blocks + on_host))


def _machine() -> float:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return math.inf
    found = re.search(r"MemAvailable:\s*(\d+) kB", text)
    return 1024.0 * int(found[1]) if found else math.inf


def _group() -> float:
    """What the control group of this process may still take (version 2; page cache counts as taken)."""
    try:
        most = (GROUP / "memory.max").read_text(encoding="ascii").strip()
        taken = (GROUP / "memory.current").read_text(encoding="ascii").strip()
        cached = re.search(r"^inactive_file (\d+)", (GROUP / "memory.stat").read_text(encoding="ascii"), re.M)
    except OSError:
        return math.inf
    return math.inf if most == "max" else float(int(most) - int(taken) + (int(cached[1]) if cached else 0))
