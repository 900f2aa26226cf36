"""Orca: iteration-level scheduling over reserved memory.

Orca (Yu et al., OSDI 2022, algorithm 1) was the first to let requests join and leave a batch between
iterations. A request enters when the batch has room and memory for its whole possible length is free, in
the order of arrival; one that does not fit holds up all younger ones. A prompt runs in one piece, in the
same iteration as everybody's next token. Nothing is ever preempted, nothing shared.

How much is reserved makes the three variants of vLLM's paper (arXiv 2309.06180, section 6.1): the model's
whole context (*max*), the next power of two above the output (*pow2*), or the true output (*oracle*).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.contiguous import BuddyMemory
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "Orca"]


class Orca(Scheduler):
    """At most *max_batch_size* sequences, each in a piece of *max_total_tokens* of contiguous memory.

    *reserve* is ``limit`` (prompt and ``max_tokens``) or ``context`` (*max_model_len*).
    """

    quiet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_total_tokens: int,
        max_batch_size: int = 256,
        max_model_len: int = 2048,
        reserve: str = "limit",
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_batch_size, block_size=1, explicit=explicit)
        if reserve not in ("limit", "context"):
            raise ConfigurationError(f"reserve {reserve!r}: must be limit or context")
        self.memory = BuddyMemory(max_total_tokens)
        self.max_model_len = max_model_len
        self.whole_context = reserve == "context"
        self.waiting: deque[Request] = deque()

    def add(self, request: Request, now: float) -> None:
        room = self.max_model_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"the prompt leaves no room for output within max_model_len {self.max_model_len}"
            )
        request.max_tokens = min(request.max_tokens, room)
        if not self.memory.fits_ever(self._reserve(request)):
            raise CapacityError(
                f"the reservation is larger than the largest piece of a KV memory of {self.memory.capacity} tokens"
            )
        self.waiting.append(request)

    def _reserve(self, request: Request) -> int:
        return self.max_model_len if self.whole_context else request.prompt_length + request.max_tokens

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def schedule(self, now: float) -> Batch | None:
        batch = Batch()
        decoding = self.decoding
        if decoding.count:
            if self.explicit:
                batch.decodes = list(decoding.members)
            decoding.advance()
            batch.num_decodes = decoding.count
            batch.decode_context = decoding.computed
        while (
            self.waiting
            and len(self.running) < self.max_num_seqs
            and self.memory.fits(self._reserve(self.waiting[0]))
        ):
            self._start(batch, self.waiting.popleft())
        if not batch.num_decodes and not batch.prefills:
            return None
        batch.iteration = decoding.iteration
        batch.repeatable = not batch.prefills
        return batch

    def _start(self, batch: Batch, request: Request) -> None:
        self.memory.take(request, self._reserve(request))
        request.status = RUNNING
        request.computed = request.prompt_length
        request.generated += 1
        self.running[request] = None
        batch.cached[request] = 0
        batch.prefills.append((request, request.prompt_length, 0))
        batch.joining.append(request)
        self.decoding.join(request)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        del self.running[request]
        self.decoding.leave(request)
        self.memory.free(request)
        request.status = FINISHED

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._drop(request)
        else:
            self.waiting.remove(request)
            request.status = FINISHED

    def repeats(self, batch: Batch, limit: int) -> int:
        return limit if batch.repeatable and not self.explicit else 1

    def advance(self, batch: Batch, n: int) -> None:
        self.decoding.advance(n)
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    @property
    def blocks_used(self) -> int:
        return self.memory.used

    @property
    def num_blocks(self) -> int:
        return self.memory.capacity

    def waste(self) -> tuple[float, float, float, float]:
        memory = self.memory
        reserved = memory.reserved - self.decoding.computed
        external = (
            memory.capacity - memory.used if self.waiting and len(self.running) < self.max_num_seqs else 0
        )
        return reserved, memory.used - memory.reserved, external, 0.0


def _system(variant: str, reserve: str, limit: str, what: str) -> System:
    return System(
        name=f"orca-{variant}",
        version="OSDI 2022",
        summary=f"requests join and leave between iterations; {what} is reserved, contiguously",
        source="Orca, algorithm 1, by a transcription; variants and buddy allocation of arXiv 2309.06180, section 6.1",
        status="inferred",
        policy="orca:Orca",
        techniques=frozenset(("pipeline",)),
        fixed={"reserve": reserve},
        block_size=1,
        memory="static",
        traits="orca",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
        default_max_tokens=limit,
    )


SYSTEMS = (
    _system("max", "context", "pow2", "the longest possible sequence"),
    _system("pow2", "limit", "pow2", "the next power of two of the output"),
    _system("oracle", "limit", "exact", "the true output"),
)
