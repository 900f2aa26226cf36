"""AirLLM: a model far larger than the GPU, its weights read from disk for every token.

It is transformers' ``generate`` with every module replaced by one that loads its weights before it runs and
drops them afterwards, while the next module's are read ahead on a thread. So a forward takes at least as long
as reading all weights, whatever the batch; memory holds two layers and the KV cache.

After AirLLM 5765c217. The rate of the disk is an option (*disk_gb_s*); the copy to the GPU hides behind it on PCIe.
"""

from __future__ import annotations

from simulator.scheduling.offloading import DISK, disk_layers
from simulator.scheduling.static_systems import GENERATE
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS"]


def _defaults(device: Device) -> dict[str, int]:
    return {"max_model_len": 512}


SYSTEMS = (
    System(
        name="airllm",
        version="5765c217",
        summary="generate() with the weights streamed from disk, layer by layer, for every step",
        source="airllm 5765c217; the disk's rate is an option, 3.5 GB/s assumed",
        status="read",
        policy="static:StaticBatch",
        fixed={"rules": GENERATE},
        defaults=_defaults,
        block_size=1,
        memory="static",
        traits="hf",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
        offload=disk_layers,
        offload_options={**DISK, "prefetching": True, "compression": None},
    ),
)
