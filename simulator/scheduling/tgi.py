"""Text Generation Inference: everything is reserved at admission, nothing is ever preempted.

The router takes requests from the front of its queue while blocks for prompt and ``max_new_tokens`` together
are free and the prompts fit into ``max_batch_prefill_tokens``; the first that does not fit ends the batch.

TGI 3 (backends/v3) prefills in chunks: the last prompt of a batch is cut to the budget, new prompts run in
one forward with what already runs, and a forward of the whole batch follows before the next ones are taken.
Its trie finds cached prompts. TGI 2 (backends/v2), or 3 without chunking, runs new prompts alone while the
others stand still, and so takes them only if they are at least ``waiting_served_ratio`` of the running ones
or ``max_waiting_tokens`` forwards have passed.

Read in text-generation-inference db931fcf (backends/v3/src/backend.rs and queue.rs,
server/.../flash_causal_lm.py). One difference: a prompt that is put back for want of budget leaves nothing in
the trie here, there its uncomputed blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import System
from simulator.scheduling.tgi_cache import BlockPool

__all__ = ["SYSTEMS", "Tgi"]


class Tgi(Scheduler):
    """The router's policy; keywords are those of the launcher.

    *max_batch_total_tokens* of KV in blocks of *block_size* tokens; *max_concurrent_requests* limits what may
    run or wait, further ones are turned away. *padded_blocks* counts prompt and output in whole blocks each,
    as TGI 2 does.
    """

    quiet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_batch_total_tokens: int,
        max_batch_prefill_tokens: int = 4096,
        max_batch_size: int | None = None,
        max_concurrent_requests: int = 128,
        max_total_tokens: int | None = None,
        waiting_served_ratio: float = 0.3,
        max_waiting_tokens: int = 20,
        block_size: int = 1,
        prefix_caching: bool = True,
        prefill_chunking: bool = True,
        padded_blocks: bool = False,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_concurrent_requests, block_size=block_size, explicit=explicit)
        reserved = 0 if padded_blocks else 1  # block 0 is for health checks
        blocks = max_batch_total_tokens // block_size - reserved
        if blocks < 1:
            raise ConfigurationError(f"max_batch_total_tokens {max_batch_total_tokens}: below two blocks")
        if max_batch_prefill_tokens < 1:
            raise ConfigurationError(
                f"max_batch_prefill_tokens {max_batch_prefill_tokens}: must be at least 1"
            )
        self.pool = BlockPool(blocks, block_size, prefix_caching=prefix_caching)
        self.max_batch_prefill_tokens = max_batch_prefill_tokens
        self.max_batch_size = max_batch_size
        self.max_total_tokens = max_total_tokens or blocks * block_size + 1
        self.waiting_served_ratio = waiting_served_ratio
        self.max_waiting_tokens = max_waiting_tokens
        self.chunking = prefill_chunking
        self.padded_blocks = padded_blocks
        self.waiting: deque[Request] = deque()
        self._chunks: dict[Request, int] = {}  # unfinished prompts, and the chunk each computes next
        self._waiting_tokens = 1  # forwards since a prompt was last taken
        self._whole_batch_next = False
        self._refused = False  # whether prompts were tried and none was taken
        self._reserved = 0  # tokens that running requests may come to

    # arrivals

    def add(self, request: Request, now: float) -> None:
        if len(self.running) + len(self.waiting) >= self.max_num_seqs:
            raise CapacityError(
                f"overloaded: {self.max_num_seqs} requests run or wait (max_concurrent_requests)"
            )
        prompt, total = request.prompt_length, request.prompt_length + request.max_tokens
        if total > self.max_total_tokens or self._blocks(request) > self.pool.num_blocks:
            raise CapacityError(
                f"a prompt of {prompt} and its outputs need {total} of {self.max_total_tokens} tokens"
            )
        if not self.chunking and self._padded(prompt) > self._padded(self.max_batch_prefill_tokens):
            raise CapacityError(
                f"a prompt of {prompt} tokens exceeds "
                f"max_batch_prefill_tokens {self.max_batch_prefill_tokens}"
            )
        self.pool.enter(request)
        self.waiting.append(request)

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.pool.block_size) * self.pool.block_size

    def _tokens(self, request: Request) -> int:
        """Positions that *request* may come to: its last token needs none."""
        return request.prompt_length + request.max_tokens - 1

    def _blocks(self, request: Request) -> int:
        if self.padded_blocks:
            return (
                self._padded(request.prompt_length) + self._padded(request.max_tokens)
            ) // self.pool.block_size
        return -(-self._tokens(request) // self.pool.block_size)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # forwards

    def schedule(self, now: float) -> Batch | Wait | None:
        batch = Batch()
        if not self.running:
            self._take(batch, None, self.max_batch_size, self.max_batch_prefill_tokens)
            self._waiting_tokens = 1
            self._whole_batch_next = False
        elif self._whole_batch_next or not self._join_batch(batch):
            self._refused = not self._whole_batch_next
            self._run_batch(batch)
            self._whole_batch_next = False
            self._waiting_tokens += 1
        if not batch.prefills and not batch.num_decodes:
            return None
        self._close(batch)
        return batch

    def _join_batch(self, batch: Batch) -> bool:
        """Take prompts beside the running batch; with chunking it runs in the same forward."""
        if self.chunking:
            current = len(self.decoding) + sum(self._chunks.values())
            self._take(batch, None, None, max(self.max_batch_prefill_tokens - current, 0))
        else:
            size = None if self.max_batch_size is None else max(self.max_batch_size - len(self.running), 0)
            self._take(batch, self._min_size(), size, self.max_batch_prefill_tokens)
        if not batch.prefills:
            return False
        if self.chunking:
            self._run_batch(batch)
        self._whole_batch_next = True
        self._waiting_tokens = 1
        return True

    def _min_size(self) -> int | None:
        """Fewer new prompts than this are not worth a stall of the running ones, until they have waited."""
        if self._waiting_tokens >= self.max_waiting_tokens:
            return None
        return int(len(self.running) * self.waiting_served_ratio)

    def _run_batch(self, batch: Batch) -> None:
        """A token of every sequence that decodes, the next chunk of every prompt."""
        for request, chunk in self._chunks.items():
            if request not in batch.cached:
                self._compute(batch, request, chunk)
        if self.decoding.members:
            self.decoding.advance()
            batch.num_decodes = len(self.decoding)
            batch.decode_context = self.decoding.computed
            if self.explicit:
                batch.decodes = list(self.decoding.members)

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk

    def _close(self, batch: Batch) -> None:
        """Finished prompts decode from the next forward on; the others learn their next chunk."""
        for request, _, _ in batch.prefills:
            if request.computed == request.target:
                self._chunks.pop(request, None)
                request.generated += 1
                self.decoding.join(request)
                batch.joining.append(request)
        if batch.prefills and self._chunks:
            self._share_out()
        batch.iteration = self.decoding.iteration
        batch.repeatable = not batch.prefills and not self._chunks

    def _share_out(self) -> None:
        """The budget of the next forward, less a token for every other sequence, goes to the latest prompts
        first.
        """
        budget = self.max_batch_prefill_tokens - (len(self.running) - 1)
        for request in reversed(self._chunks):
            self._chunks[request] = chunk = max(min(request.target - request.computed, budget), 1)
            budget -= chunk

    # taking prompts

    def _take(self, batch: Batch, min_size: int | None, max_size: int | None, budget: int) -> None:
        """Requests from the front of the queue, up to the first that does not fit; fewer than *min_size*
        stay.
        """
        waiting = self.waiting
        if not waiting or (min_size is not None and len(waiting) < min_size) or max_size == 0:
            return
        budget = self._padded(budget)
        taken: list[tuple[Request, int]] = []
        while waiting and len(taken) != max_size:
            chunk = self._fit(waiting[0], budget)
            if not chunk:
                break
            request = waiting.popleft()
            budget -= self._padded(request.prompt_length) if self.padded_blocks else chunk
            taken.append((request, chunk))
            if request.registered + chunk < request.prompt_length - self._recomputed(request):
                break
        if min_size is not None and len(taken) < min_size:
            for request, _ in reversed(taken):
                self.pool.release(request, computed=False)
                waiting.appendleft(request)
            return
        for request, chunk in taken:
            self._start(batch, request, chunk)

    def _recomputed(self, request: Request) -> int:
        """A prompt that is cached to its end has its last token computed again."""
        return int(request.registered == request.prompt_length)

    def _fit(self, request: Request, budget: int) -> int:
        """Take the blocks of *request*; returns the prompt tokens it computes, 0 if it does not fit."""
        pool = self.pool
        prefix = pool.find(request)
        left = request.prompt_length - prefix or 1
        need = self._padded(left) if self.padded_blocks else left
        if need > budget:
            left = min(left, budget) if self.chunking else 0
        tokens = self._blocks(request) * pool.block_size if self.padded_blocks else self._tokens(request)
        if not left or not pool.allocate(request, tokens):
            pool.forgo(request)
            return 0
        return left

    def _start(self, batch: Batch, request: Request, chunk: int) -> None:
        request.status = RUNNING
        request.computed = request.cached_tokens = request.registered - self._recomputed(request)
        batch.cached[request] = request.computed
        self.running[request] = None
        self._reserved += self._tokens(request)
        self.pool.trim(request, self._tokens(request))
        if request.computed + chunk < request.target:
            self._chunks[request] = 0
        self._compute(batch, request, chunk)

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        if request in self.decoding:
            self.decoding.leave(request)
        self._chunks.pop(request, None)
        del self.running[request]
        self._reserved -= self._tokens(request)
        self.pool.release(request, computed=request.computed >= request.prompt_length)
        request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._leave(request)
        else:
            self.waiting.remove(request)
            request.status = FINISHED

    # many forwards at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit or len(self.decoding) != batch.num_decodes:
            return 1
        if not self.waiting:
            return limit
        if not self._refused:
            return 1
        if self.chunking or self._waiting_tokens >= self.max_waiting_tokens:
            return limit  # memory and budget stay as they are
        return min(limit, 1 + self.max_waiting_tokens - self._waiting_tokens)

    def advance(self, batch: Batch, n: int) -> None:
        self.decoding.advance(n)
        self._waiting_tokens += n
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self.pool.num_blocks - self.pool.free - self.pool.cached

    @property
    def num_blocks(self) -> int:
        return self.pool.num_blocks

    @property
    def blocks_cached(self) -> int:
        return self.pool.cached

    def waste(self) -> tuple[float, float, float, float]:
        computed = self.decoding.computed + sum(r.computed for r in self._chunks)
        return self._reserved - computed, 0.0, 0.0, 0.0


SYSTEMS = (
    System(
        name="tgi",
        version="3 (db931fcf)",
        summary="prompt and outputs reserved at admission, prompts in chunks beside decodes, prompt trie",
        source="text-generation-inference db931fcf, backends/v3",
        status="read",
        policy="tgi:Tgi",
        fixed={"padded_blocks": False},
        speculation=("medusa", "ngram"),
        speculative="tgi_speculative:SpeculativeTgi",
        speculative_fixed={"prefill_chunking": False},
        block_size=1,
        memory="tgi",
        traits="tgi",
        capacity="max_batch_total_tokens",
        capacity_in_tokens=True,
    ),
    System(
        name="tgi-2",
        version="2 (db931fcf, backends/v2)",
        summary="prompt and outputs reserved at admission, prompts alone, as many as are worth a stall",
        source="text-generation-inference db931fcf, backends/v2",
        status="read",
        policy="tgi:Tgi",
        fixed={"padded_blocks": True, "prefix_caching": False, "prefill_chunking": False},
        speculation=("medusa", "ngram"),
        speculative="tgi_speculative:SpeculativeTgi",
        block_size=16,
        memory="tgi",
        traits="tgi",
        capacity="max_batch_total_tokens",
        capacity_in_tokens=True,
    ),
)
