"""Paged memory without sharing: blocks are counted, and whoever loses them is computed again.

What several schedulers have in common that keep KV in blocks, share no prefixes, fork no samples and know one
way to take memory back: the victim's blocks return, it goes to the front of the queue, and everything known of
it is a prompt again. In which order requests get their turn, when one is admitted and who the victim is, is
each system's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.request import FINISHED, PREEMPTED, RUNNING, Request

__all__ = ["UnsharedPages"]


class UnsharedPages(Scheduler):
    """*num_blocks* blocks of *block_size* tokens; sequences up to *max_length* tokens.

    ``free`` is exact at all times. A decoding sequence holds the blocks of its computed tokens, one whose prompt is
    not complete ``num_blocks``.
    """

    quiet: ClassVar[bool] = True

    def __init__(
        self, *, num_blocks: int, block_size: int, max_num_seqs: int, max_length: int, explicit: bool
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigurationError(
                f"{num_blocks} blocks of {block_size} tokens: at least one of each is needed"
            )
        super().__init__(max_num_seqs=max_num_seqs, block_size=block_size, explicit=explicit)
        self.block_size = block_size
        self._num_blocks = self.free = num_blocks
        self.max_length = max_length
        self.waiting: deque[Request] = deque()
        self._prefilling: dict[Request, None] = {}  # admitted, prompt not complete

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.max_length - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"a prompt of {request.prompt_length} tokens leaves no room for output: "
                f"the longest sequence has {self.max_length}"
            )
        request.max_tokens = min(request.max_tokens, room)
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # blocks

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _grow(self, request: Request, tokens: int) -> None:
        """Room for *tokens* tokens of a *request* that does not decode."""
        more = self._blocks(tokens) - request.num_blocks
        if more > 0:
            self.free -= more
            request.num_blocks += more

    def _held(self, request: Request) -> int:
        return self._blocks(self.decoding.tokens(request)) if request.phase >= 0 else request.num_blocks

    # turns

    def _start(self, batch: Batch, request: Request, tokens: int) -> None:
        """Admit *request* with blocks for *tokens* tokens."""
        request.status = RUNNING
        request.computed = 0
        self._grow(request, tokens)
        self.running[request] = None
        self._prefilling[request] = None
        batch.cached[request] = 0

    def _compute(self, batch: Batch, request: Request, chunk: int) -> None:
        """The next *chunk* prompt tokens; a complete prompt joins the decoding ones."""
        batch.prefills.append((request, chunk, request.computed))
        request.computed += chunk
        if request.computed == request.target:
            del self._prefilling[request]
            request.generated += 1
            batch.joining.append(request)

    def _decode(self, batch: Batch) -> None:
        """A token of every decoding sequence; the blocks must be there."""
        decoding = self.decoding
        if not decoding.count:
            return
        self.free -= decoding.blocks_next
        decoding.advance()
        batch.num_decodes = decoding.count
        batch.decode_context = decoding.computed
        if self.explicit:
            batch.decodes = list(decoding.members)

    def _close(self, batch: Batch) -> Batch | None:
        """What is done when the batch is complete. None: it is empty."""
        for request in batch.joining:
            self.decoding.join(request)
        batch.iteration = self.decoding.iteration
        batch.repeatable = not (batch.prefills or batch.preempted or batch.stalled or self._prefilling)
        return batch if batch.prefills or batch.num_decodes else None

    def _preempt(self, batch: Batch, request: Request) -> None:
        self._release(request)
        request.status = PREEMPTED
        request.computed = 0
        request.target = request.prompt_length + request.generated
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)
        batch.preempted.append(request)

    # ends

    def _release(self, request: Request) -> None:
        self.free += self._held(request)
        request.num_blocks = 0
        del self.running[request]
        if request.phase >= 0:
            self.decoding.leave(request)
        else:
            self._prefilling.pop(request, None)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._release(request)
            request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._release(request)
        else:
            self.waiting.remove(request)
        request.status = FINISHED

    # many steps at once

    @abstractmethod
    def _steady(self, limit: int) -> int:
        """For how many more iterations, at most *limit*, the same sequences decode and nobody is admitted."""

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or limit <= 1 or self.explicit:
            return 1
        return 1 + self._steady(limit - 1)

    def advance(self, batch: Batch, n: int) -> None:
        self.free -= self.decoding.blocks_over(n)
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self._num_blocks - self.free

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    def waste(self) -> tuple[float, float, float, float]:
        reserved = tokens = 0
        for request in self._prefilling:
            blocks = self._blocks(request.computed)
            reserved += request.num_blocks - blocks
            tokens += request.computed
        used = self.blocks_used - reserved
        internal = used * self.block_size - self.decoding.computed - tokens
        return float(reserved * self.block_size), float(internal), 0.0, 0.0
