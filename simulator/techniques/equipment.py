"""What a policy is given besides its options: what moving blocks costs, adapter slots, a host tier for KV."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwprofiles import HardwareProfile
from simulator.memory import MemoryBudget
from simulator.models import ModelSpec
from simulator.scheduling import Scheduler
from simulator.scheduling.moves import FREE, BlockMoves, MoveCost
from simulator.scheduling.system import System
from simulator.scheduling.vllm_v1_extended import ExtendedV1
from simulator.steptime.kernels import Kernels
from simulator.steptime.laws import LawSet
from simulator.steptime.lora import adapter_bytes
from simulator.steptime.parallelism import Parallelism
from simulator.techniques.options import Techniques

__all__ = ["Equipment", "policy_of"]

GIB = 2**30


@dataclass(frozen=True)
class Equipment:
    """What KV blocks and an adapter take to move; adapter slots; KV blocks in host memory.

    *swap* says where the costs of swapping are from, for a reader; empty where nothing ever crosses the host link.
    """

    moves: BlockMoves = FREE
    swap: str = ""
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
        system: System,
        swap_space: int,
    ) -> Equipment:
        """For a replica: ranks copy their parts of a block at the same time, each over its own link."""
        laws, lora = LawSet.from_profile(profile), kernels.lora
        moves = _block_moves(laws, model, parallel, budget.block_bytes, system.swap)
        adapter = adapter_bytes(model, lora.rank, parallel.tp) / parallel.pp if lora else 0.0
        block = budget.block_bytes * parallel.num_gpus / parallel.dp  # bytes of all ranks that hold a part
        offloaded = (techniques.kv_offloading_size or 0.0) * GIB
        return cls(
            moves=moves,
            swap=_described(moves, laws, system.swap) if swap_space or offloaded else "",
            adapter_load_s=laws.move("swap_in", adapter, 1.0) if lora else 0.0,
            max_loras=lora.max_loras if lora else 0,
            host_blocks=max(int(offloaded // block), 1) if offloaded else 0,
        )

    def equip(self, scheduler: Scheduler) -> Scheduler:
        """*scheduler*, with all of it."""
        scheduler.moves = self.moves
        if isinstance(scheduler, ExtendedV1):
            scheduler.equip(
                max_loras=self.max_loras, adapter_load_s=self.adapter_load_s, host_blocks=self.host_blocks
            )
        return scheduler


def _block_moves(
    laws: LawSet, model: ModelSpec, parallel: Parallelism, block_bytes: float, variant: str
) -> BlockMoves:
    """A block of a rank, by the laws of its device. Gathered, a batch has as many copies as a block."""
    pieces = sum(layer.count * layer.attention.kv_pieces for layer in model.layers) / parallel.pp

    def cost(op: str, moved: float, variant: str = "") -> MoveCost:
        once, each = (pieces, 0.0) if variant == "gathered" else (0.0, pieces)
        start = laws.move(op, 0.0, once, variant)
        return MoveCost(start, laws.move(op, moved, once + each, variant) - start)

    swap_in, swap_out = (cost(op, block_bytes, variant) for op in ("swap_in", "swap_out"))
    return BlockMoves(swap_in, swap_out, cost("block_copy", 2.0 * block_bytes))


def _described(moves: BlockMoves, laws: LawSet, variant: str) -> str:
    """``swap: 12 us + 41 us a block out, 39 us a block in (measured: …)``."""
    source = laws.law("swap_out", "bf16", variant).source
    out, back = (
        (f"{1e6 * cost.start_s:.3g} us + " if cost.start_s else "") + f"{1e6 * cost.block_s:.3g} us a block"
        for cost in (moves.swap_out, moves.swap_in)
    )
    return f"swap: {out} out, {back} in ({source.kind}: {source.text})"


def policy_of(techniques: Techniques, system: System) -> System:
    """*system* with the policy that these switches need."""
    if techniques.kv_cache is False and system.uncached is not None:
        return replace(system, policy=system.uncached)
    extended = techniques.enable_lora or techniques.kv_offloading_size is not None
    return replace(system, policy=system.extended) if extended and system.extended is not None else system
