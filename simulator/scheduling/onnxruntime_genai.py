"""ONNX Runtime GenAI's dynamic engine: decodes first, every admitted prompt at least one token.

Candidates of a step are the resident requests that decode, then those with prompt left, then queued ones, at most
*max_batch_size*. A queued one is admitted, in order, when blocks for all of its tokens are free: they are reserved
at once, so that a prompt in chunks cannot lose the rest. Each selected request gets one token; what remains of
*max_scheduled_tokens* goes to the prompts in order. So a long prompt at the front does not stop those behind it
from trickling along, as it would elsewhere.

Read in onnxruntime-genai (src/engine/scheduler.cpp, decode_first_scheduler_policy.cpp,
recompute_preemption_policy.cpp). Inferred: a decoding request that finds no block stays behind; if all do, the
one preempted least often, among those the newest, is computed again. Prefix cache, windows and drafts are not
modelled.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.system import System
from simulator.scheduling.unshared import UnsharedPages

__all__ = ["SYSTEMS", "OnnxruntimeGenai"]


class OnnxruntimeGenai(UnsharedPages):
    """*max_batch_size* requests and *max_scheduled_tokens* tokens a step.

    *chunk_size* caps one prompt's share (0: no cap).
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 256,
        max_batch_size: int = 16,
        max_scheduled_tokens: int = 2048,
        chunk_size: int = 0,
        max_model_len: int = 8192,
        explicit: bool = False,
    ) -> None:
        super().__init__(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=min(max_batch_size, max_scheduled_tokens),
            max_length=min(max_model_len, num_blocks * block_size),
            explicit=explicit,
        )
        if chunk_size < 0:
            raise ConfigurationError(f"chunk_size {chunk_size}: must not be negative")
        self.max_tokens = max_scheduled_tokens
        self.chunk_size = chunk_size

    def schedule(self, now: float) -> Batch | None:
        batch = Batch()
        if self.explicit or self.decoding.blocks_next > self.free:
            self._decode_in_order(batch)
        else:
            self._decode(batch)
        if not batch.preempted:
            self._admit(batch)
        self._share_out(batch)
        return self._close(batch)

    # decodes

    def _decode_in_order(self, batch: Batch) -> None:
        """Who finds no block stays behind; somebody must go on."""
        decoding = self.decoding
        if not decoding.count:
            return
        behind = self._behind()
        while len(behind) == decoding.count and not self._prefilling:
            self._preempt(batch, self._victim())
            behind = self._behind()
        if len(behind) == decoding.count:
            return
        missing = set(behind)
        self.free -= decoding.blocks_next - len(behind)
        decoding.advance()
        for request in behind:
            decoding.stall(request)
        batch.stalled = behind
        batch.num_decodes = decoding.count - len(behind)
        batch.decode_context = decoding.computed - sum(decoding.tokens(request) for request in behind)
        if self.explicit:
            batch.decodes = [request for request in decoding.members if request not in missing]

    def _behind(self) -> list[Request]:
        needing = [request for request in self.decoding.members if self.decoding.needs_block(request)]
        return needing[self.free :]

    def _victim(self) -> Request:
        return min(reversed(self.running), key=lambda request: request.num_preemptions)

    # prompts

    def _admit(self, batch: Batch) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self._blocks(request.target) > self.free:
                break
            self.waiting.popleft()
            self._start(batch, request, request.target)

    def _share_out(self, batch: Batch) -> None:
        """A token for each prompt, and what remains of the budget in order."""
        prompts = list(self._prefilling)
        spare = self.max_tokens - batch.num_decodes - len(prompts)
        for request in prompts:
            left = request.target - request.computed
            wanted = min(left, self.chunk_size) if self.chunk_size else left
            more = min(wanted - 1, spare)
            spare -= more
            self._compute(batch, request, 1 + more)

    def _steady(self, limit: int) -> int:
        """Until somebody stays behind. A free seat was not taken for want of blocks, and those only dwindle."""
        return self.decoding.iterations_within(self.free, limit)


SYSTEMS = (
    System(
        name="onnxruntime-genai",
        version="00e588f5",
        summary="decodes first, every admitted prompt a token, the rest of 2048 in order; whole prompt reserved",
        source="onnxruntime-genai 00e588f5, src/engine/scheduler.cpp, decode_first_scheduler_policy.cpp",
        status="read",
        policy="onnxruntime_genai:OnnxruntimeGenai",
        block_size=256,
        memory="static",
        traits="cpp",
        capacity="num_blocks",
    ),
)
