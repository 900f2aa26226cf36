"""What a policy is given besides its options: the host link's rates, adapter slots, a host tier for KV."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwprofiles import HardwareProfile
from simulator.memory import MemoryBudget
from simulator.models import ModelSpec
from simulator.scheduling import Scheduler
from simulator.scheduling.system import System
from simulator.scheduling.vllm_v1_extended import ExtendedV1
from simulator.steptime.kernels import Kernels
from simulator.steptime.lora import adapter_bytes
from simulator.steptime.parallelism import Parallelism
from simulator.techniques.options import Techniques

__all__ = ["HOST_LINK_SHARE", "Equipment", "policy_of"]

GIB = 2**30
HOST_LINK_SHARE = 0.8
"""Of the datasheet's PCIe rate that copies between pinned host memory and the device reach. Assumed."""


@dataclass(frozen=True)
class Equipment:
    """Seconds over the host link of a KV block and of an adapter; adapter slots; KV blocks in host memory."""

    block_transfer_s: float = 0.0
    adapter_load_s: float = 0.0
    max_loras: int = 0
    host_blocks: int = 0

    @classmethod
    def of(
        cls,
        techniques: Techniques,
        model: ModelSpec,
        profile: HardwareProfile,
        parallel: Parallelism,
        kernels: Kernels,
        budget: MemoryBudget,
    ) -> Equipment:
        """For a replica: ranks copy their parts of a block at the same time, each over its own link."""
        rate, lora = HOST_LINK_SHARE * profile.pcie_bandwidth, kernels.lora
        block = budget.block_bytes * parallel.num_gpus / parallel.dp  # bytes of all ranks that hold a part
        offloaded = (techniques.kv_offloading_size or 0.0) * GIB
        return cls(
            block_transfer_s=budget.block_bytes / rate,
            adapter_load_s=adapter_bytes(model, lora.rank, parallel.tp) / parallel.pp / rate if lora else 0.0,
            max_loras=lora.max_loras if lora else 0,
            host_blocks=max(int(offloaded // block), 1) if offloaded else 0,
        )

    def equip(self, scheduler: Scheduler) -> Scheduler:
        """*scheduler*, with all of it."""
        scheduler.block_transfer_s = self.block_transfer_s
        if isinstance(scheduler, ExtendedV1):
            scheduler.equip(
                max_loras=self.max_loras, adapter_load_s=self.adapter_load_s, host_blocks=self.host_blocks
            )
        return scheduler


def policy_of(techniques: Techniques, system: System) -> System:
    """*system* with the policy that these switches need."""
    if techniques.kv_cache is False and system.uncached is not None:
        return replace(system, policy=system.uncached)
    extended = techniques.enable_lora or techniques.kv_offloading_size is not None
    return replace(system, policy=system.extended) if extended and system.extended is not None else system
