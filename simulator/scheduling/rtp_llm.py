"""RTP-LLM's FIFO scheduler: a batch of prompts when nobody runs, and then decodes until all have ended.

Running streams first: where the blocks of their next tokens are not free, the last one falls back to the front
of the queue, with all its blocks. Then new ones, in order, while there are seats, blocks for the whole prompt
beyond a reserve, and the padded rectangle of the new prompts stays below *max_batch_tokens_size*. Models of the
newer Python runtime (*load_python_model*) cannot mix prompts with decodes: new streams wait until none runs.
The older runtime computes both in one forward.

Read in rtp-llm 01bf2a9e (rtp_llm/cpp/engine_base/schedulers/FIFOScheduler.cc), for instances that do both prefill
and decode. Not modelled: partial fallback, cache loading, the block cache, fast generation. A stream that lost its
blocks is not taken back in the same iteration.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.system import System
from simulator.scheduling.unshared import UnsharedPages

__all__ = ["SYSTEMS", "RtpLlm"]


class RtpLlm(UnsharedPages):
    """*max_generate_batch_size* streams; blocks of *seq_size_per_block* tokens, *scheduler_reserve_resource_ratio* per
    cent of them kept free at admission.

    *max_batch_tokens_size* None: *max_seq_len*, which is what one context batch may hold.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int,
        seq_size_per_block: int = 64,
        max_generate_batch_size: int = 1,
        max_seq_len: int = 8192,
        max_batch_tokens_size: int | None = None,
        scheduler_reserve_resource_ratio: int = 5,
        load_python_model: bool = True,
        explicit: bool = False,
    ) -> None:
        if not 0 <= scheduler_reserve_resource_ratio < 100:
            raise ConfigurationError(
                f"scheduler_reserve_resource_ratio {scheduler_reserve_resource_ratio}: must be from 0 to 99"
            )
        self.reserve = scheduler_reserve_resource_ratio * num_gpu_blocks // 100
        super().__init__(
            num_blocks=num_gpu_blocks,
            block_size=seq_size_per_block,
            max_num_seqs=max_generate_batch_size,
            max_length=min(max_seq_len - 1, (num_gpu_blocks - self.reserve) * seq_size_per_block),
            explicit=explicit,
        )
        self.max_seq_len = max_seq_len
        self.max_batch_tokens = max_batch_tokens_size or max_seq_len
        self.alone = load_python_model

    def schedule(self, now: float) -> Batch | None:
        batch, decoding = Batch(), self.decoding
        while decoding.blocks_next > self.free:
            self._preempt(batch, next(reversed(self.running)))
        if not batch.preempted and not (self.alone and self.running):
            new = self._admit(batch)
        else:
            new = []
        self._decode(batch)
        for request in new:
            self._compute(batch, request, request.target)
        return self._close(batch)

    def _admit(self, batch: Batch) -> list[Request]:
        new: list[Request] = []
        free = self.free - self.decoding.blocks_next
        longest = 0
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            longest = max(longest, request.target)
            blocks = self._blocks(request.target)
            if free - blocks < self.reserve or not self._fits_rectangle(len(new), longest):
                break
            self.waiting.popleft()
            self._start(batch, request, request.target)
            free -= blocks
            new.append(request)
        return new

    def _fits_rectangle(self, before: int, longest: int) -> bool:
        """The first prompt only has to be shorter than the longest sequence."""
        running = self.decoding.count
        if before == 0 and longest + running < self.max_seq_len:
            return True
        return longest * (before + 1) + running < self.max_batch_tokens

    def _steady(self, limit: int) -> int:
        return self.decoding.iterations_within(self.free, limit)


SYSTEMS = (
    System(
        name="rtp-llm",
        version="01bf2a9e",
        summary="prompts only when nobody runs, then decodes to the end; falls back from the last, recompute",
        source="rtp-llm 01bf2a9e, rtp_llm/cpp/engine_base/schedulers/FIFOScheduler.cc",
        status="read",
        policy="rtp_llm:RtpLlm",
        block_size=64,
        memory="static",
        traits="cpp",
    ),
)
