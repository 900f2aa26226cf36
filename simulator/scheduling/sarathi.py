"""Sarathi-Serve: a budget of tokens that decodes come first in, so that a prompt never stalls them.

Every iteration takes a token of each decoding sequence, then the rest of the prompts in progress, then new
prompts, each cut to what is left of *chunk_size* tokens ("stall-free batching": Agrawal et al., OSDI 2024,
algorithm 3). The memory is that of vLLM 0.2: a prompt is admitted when blocks for all of it are free and a
watermark stays; a decoding sequence asks for a free block whether it needs one or not; without one, the last to
arrive is computed again.

Read in microsoft/sarathi-serve (sarathi/core/scheduler/sarathi_scheduler.py). Two differences: nobody is
admitted in an iteration that preempts (there a victim may return at once), and decodes beyond the budget leave
prompts nothing (there a negative chunk). Chunk sizes that shrink as a prompt advances are not modelled.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import RUNNING, Request
from simulator.scheduling.system import System
from simulator.scheduling.unshared import UnsharedPages

__all__ = ["SYSTEMS", "Sarathi"]


class Sarathi(UnsharedPages):
    """*chunk_size* tokens an iteration for at most *max_num_seqs* sequences.

    *watermark* is a fraction of the blocks.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        block_size: int = 16,
        max_num_seqs: int = 128,
        chunk_size: int = 512,
        max_model_len: int = 8192,
        watermark: float = 0.01,
        explicit: bool = False,
    ) -> None:
        if chunk_size < 1:
            raise ConfigurationError(f"chunk_size {chunk_size}: must be at least 1")
        self.watermark_blocks = int(watermark * num_gpu_blocks)
        # one block is asked for beyond what the longest sequence holds
        room = (num_gpu_blocks - max(self.watermark_blocks, 1)) * block_size
        super().__init__(
            num_blocks=num_gpu_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_length=min(max_model_len, room),
            explicit=explicit,
        )
        self.chunk_size = chunk_size

    def schedule(self, now: float) -> Batch | None:
        batch = Batch()
        if self.explicit or self.decoding.blocks_next >= self.free:
            self._make_room(batch)
        self._decode(batch)
        budget = self.chunk_size - batch.num_decodes
        for request in sorted(self._prefilling, key=lambda request: request.arrival_time):
            budget -= self._chunk(batch, request, budget)
        if not batch.preempted:
            self._admit(batch, budget)
        return self._close(batch)

    def _make_room(self, batch: Batch) -> None:
        """In the order of arrival, every decoding sequence finds a free block, at the cost of later ones."""
        queue = sorted(self.running, key=lambda request: request.arrival_time)
        free = self.free
        prompts = 0  # passed over: no longer among the possible victims
        while len(queue) > prompts:
            request = queue[prompts]
            if request.phase < 0:
                prompts += 1
                continue
            queue.pop(prompts)
            while free < 1 and request.status is RUNNING:
                victim = queue.pop() if len(queue) > prompts else request
                free += self._held(victim)
                self._preempt(batch, victim)
            if request.status is RUNNING:
                free -= self.decoding.needs_block(request)

    def _chunk(self, batch: Batch, request: Request, budget: int) -> int:
        chunk = min(request.target - request.computed, budget)
        if chunk > 0:
            self._compute(batch, request, chunk)
        return max(chunk, 0)

    def _admit(self, batch: Batch, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self.free - self._blocks(request.target) < self.watermark_blocks:
                break
            self.waiting.popleft()
            self._start(batch, request, request.target)
            budget -= self._chunk(batch, request, budget)

    def _steady(self, limit: int) -> int:
        """While one block beyond the needed ones stays free; who waits finds no more room than before."""
        return self.decoding.iterations_within(self.free - 1, limit) if self.free else 0


SYSTEMS = (
    System(
        name="sarathi",
        version="OSDI 2024 (13f16cf4)",
        summary="chunked prefill within a token budget, decodes first; vLLM 0.2's memory without sharing",
        source="sarathi-serve 13f16cf4, sarathi/core/scheduler/sarathi_scheduler.py; arXiv 2403.02310, algorithm 3",
        status="read",
        policy="sarathi:Sarathi",
        techniques=frozenset(("pipeline",)),
        memory="vllm-0.2",
        traits="sarathi",
    ),
)
