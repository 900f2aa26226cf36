"""vLLM's V1 scheduler with LoRA adapters and a host tier for KV.

Adapters: where as many distinct ones run as there are slots, a waiting request with yet another one is passed over
and keeps its place in the queue (v1/core/sched/scheduler.py, ``scheduled_loras``). Blocks of requests with different
adapters are different, whatever their text (kv_cache_utils.py: the adapter is part of the hash). An adapter without a
slot is copied over the host link before the step.

Host tier: see `host_tier`. The engine starts a request when its blocks are there and lets others run meanwhile; here
the step that admits it waits for the copy, an upper bound.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.adapters import AdapterSlots
from simulator.scheduling.base import Batch
from simulator.scheduling.blocks import Hit
from simulator.scheduling.host_tier import HostTier, TieredBlocks
from simulator.scheduling.request import Request
from simulator.scheduling.vllm_v1 import VllmV1

__all__ = ["ExtendedV1"]

ADAPTER_ID_BASE = -(2**60)
"""Content ids that set the prompts of different adapters apart."""


class ExtendedV1(VllmV1):
    """`VllmV1`; `equip` gives it adapter slots, host memory or both."""

    adapters: AdapterSlots | None = None
    tier: HostTier | None = None
    adapter_load_s = 0.0
    _aside: list[Request]
    """Taken from the queue while others are admitted: their adapters find no slot."""

    def equip(self, *, max_loras: int = 0, adapter_load_s: float = 0.0, host_blocks: int = 0) -> None:
        """Before the first request: *max_loras* slots, each filled in *adapter_load_s* s; KV *host_blocks*."""
        if max_loras:
            self.adapters, self.adapter_load_s = AdapterSlots(max_loras), adapter_load_s
        if host_blocks:
            if not self.blocks.prefix_caching:
                raise ConfigurationError(
                    "kv_offloading_size: blocks are found by content, which enable_prefix_caching false switches off"
                )
            self.tier = HostTier(host_blocks, self.block_size)
            self.blocks = TieredBlocks(
                self.blocks.num_blocks,
                self.block_size,
                unhashed_first=self.rules.unhashed_first,
                tier=self.tier,
            )

    def add(self, request: Request, now: float) -> None:
        if self.adapters is not None and request.adapter is not None:
            named = request.content
            if named and named[0][0] <= ADAPTER_ID_BASE:  # it was sent to another replica before
                named = named[1:]
            request.content = ((ADAPTER_ID_BASE - self.adapters.number(request.adapter), 0), *named)
        if request.ready and isinstance(self.blocks, TieredBlocks):
            self.blocks.brought.add(request)
        super().add(request, now)

    def transfer_seconds(self, batch: Batch) -> float:
        return super().transfer_seconds(batch) + batch.adapters_loaded * self.adapter_load_s

    def transfers(self) -> dict[str, int]:
        found = {} if self.tier is None else {"kv_blocks": self.tier.blocks_loaded}
        return found if self.adapters is None else {**found, "adapters": self.adapters.num_loads}

    # admission

    def _admit(self, batch: Batch, budget: int) -> None:
        aside = self._aside = []
        self._set_aside()
        super()._admit(batch, budget)
        for request in reversed(aside):
            self._enqueue(request, front=True)
        if isinstance(self.blocks, TieredBlocks):
            self.blocks.forget_looks()

    def _set_aside(self) -> None:
        """Take requests from the head of the queue for whose adapter there is no slot."""
        slots = self.adapters
        while slots is not None and self._line:
            request = self._queue[0][3] if self.by_priority else self.waiting[0]
            if slots.admits(request.adapter):
                return
            self._aside.append(self._pop())

    def _start(self, batch: Batch, request: Request, hit: Hit, context: int, chunk: int) -> None:
        if self.tier is not None and isinstance(self.blocks, TieredBlocks):
            loaded = context // self.block_size - hit.blocks
            if request in self.blocks.brought:
                self.blocks.brought.discard(request)
            elif loaded > 0:
                batch.blocks_swapped_in += loaded
                self.tier.blocks_loaded += loaded
        super()._start(batch, request, hit, context, chunk)
        if self.adapters is not None:
            batch.adapters_loaded += self.adapters.enter(request.adapter)
            self._set_aside()

    def _retire(self, request: Request, turn: int = 0, *, for_good: bool = True) -> None:
        super()._retire(request, turn, for_good=for_good)
        if self.adapters is not None:
            self.adapters.leave(request.adapter)
