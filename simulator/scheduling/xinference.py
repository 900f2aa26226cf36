"""Xinference's transformers engine: requests join between rounds of sixteen decode steps.

Before a round, all waiting requests that have a seat are computed in one padded forward, and their cache is
merged with that of the running ones into one rectangle, as wide as the widest. Then everybody decodes sixteen
steps. Who ends within a round is computed to its end; after it, ended rows are cut out and 10 ms are slept (in
the traits of this system).

Read in xorbitsai/inference (xinference/core/scheduler.py, model/llm/transformers/utils.py). Assumed: a request
is admitted when the rectangle at its largest fits the memory (there it would run out of it); the width is that
of the widest living row. A stream's tokens reach the client at the end of a round there, step by step here. For
its other engines Xinference starts vLLM, SGLang or llama.cpp: take those systems.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler
from simulator.scheduling.request import FINISHED, RUNNING, Request
from simulator.scheduling.system import System

__all__ = ["SYSTEMS", "Xinference"]

ROUND = 16
"""Decode steps between two looks at the queue (utils.py: decode_round)."""


class Xinference(Scheduler):
    """*max_num_seqs* seats over a rectangle of at most *max_total_tokens* tokens of KV."""

    quiet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_total_tokens: int,
        max_num_seqs: int = 16,
        max_model_len: int = 2048,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_num_seqs, block_size=1, explicit=explicit)
        if max_total_tokens < 1:
            raise ConfigurationError(f"max_total_tokens {max_total_tokens}: must be at least 1")
        self.capacity = max_total_tokens
        self.max_model_len = max_model_len
        self.waiting: deque[Request] = deque()
        self._rows = 0  # of the rectangle, ended ones included until the round is over
        self._width = 0
        self._more = 0  # tokens that the longest answer may still add
        self._left = 0  # steps of this round

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.max_model_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"the prompt leaves no room for output within max_model_len {self.max_model_len}"
            )
        request.max_tokens = min(request.max_tokens, room)
        # a row that ends in mid-round is still computed, so the rectangle may outgrow its longest answer
        need = request.prompt_length + request.max_tokens + ROUND
        if need > self.capacity:
            raise CapacityError(
                f"prompt, output and a round need {need} tokens of KV, there are {self.capacity}"
            )
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # steps

    def schedule(self, now: float) -> Batch | None:
        batch = Batch()
        if not self._left:
            self._begin_round()
            self._admit(batch)
            if batch.prefills:
                batch.iteration = self.decoding.iteration
                return batch
        if self.decoding.count:
            return self._decode(batch)
        self._left = 0
        return None

    def _begin_round(self) -> None:
        """Rows that have ended are cut out; the rectangle is as wide as the widest of the rest."""
        members, decoding = self.decoding.members, self.decoding
        self._rows = len(members)
        self._width = max((decoding.tokens(r) for r in members), default=0)
        self._more = max((r.max_tokens - decoding.generated(r) for r in members), default=0)
        self._left = ROUND

    def _admit(self, batch: Batch) -> None:
        new: list[Request] = []
        while self.waiting and self._rows < self.max_num_seqs:
            request = self.waiting[0]
            # padded on the left to the widest, any row may go on for as long as the longest answer
            width, more = max(self._width, request.prompt_length), max(self._more, request.max_tokens)
            if (self._rows + 1) * (width + more + ROUND) > self.capacity:
                break
            self._width, self._more = width, more
            self._rows += 1
            new.append(self.waiting.popleft())
        for request in new:
            self._start(batch, request)
        if new:
            prompts = [request.prompt_length for request in new]
            batch.padded_tokens = max(prompts) * len(new) - sum(prompts)

    def _start(self, batch: Batch, request: Request) -> None:
        request.status = RUNNING
        request.computed = request.prompt_length
        request.generated += 1
        self.running[request] = None
        self.decoding.join(request)
        batch.cached[request] = 0
        batch.prefills.append((request, request.prompt_length, 0))
        batch.joining.append(request)

    def _decode(self, batch: Batch) -> Batch:
        decoding = self.decoding
        if self.explicit:
            batch.decodes = list(decoding.members)
        decoding.advance()
        self._width += 1
        self._left -= 1
        batch.num_decodes = self._rows
        batch.idle_rows = self._rows - decoding.count
        batch.decode_context = self._rows * self._width
        batch.iteration = decoding.iteration
        batch.repeatable = True
        return batch

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        del self.running[request]
        self.decoding.leave(request)
        request.status = FINISHED
        if not self.running:  # nobody is left to compute the rest of the round for
            self._rows = self._width = self._more = self._left = 0

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._drop(request)
        else:
            self.waiting.remove(request)
            request.status = FINISHED

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        if not batch.repeatable or self.explicit:
            return 1
        if self.waiting or batch.idle_rows:
            return min(limit, 1 + self._left)
        return limit

    def advance(self, batch: Batch, n: int) -> None:
        self.decoding.advance(n)
        self._width += n
        self._left = (self._left - n) % ROUND
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        return self._rows * self._width

    @property
    def num_blocks(self) -> int:
        return self.capacity

    def waste(self) -> tuple[float, float, float, float]:
        return 0.0, float(self.blocks_used - self.decoding.computed), 0.0, 0.0


SYSTEMS = (
    System(
        name="xinference",
        version="0a5ea22c (transformers engine)",
        summary="requests join between rounds of 16 steps, padded prefill, one padded rectangle of KV",
        source="xorbitsai/inference 0a5ea22c, core/scheduler.py, model/llm/transformers/utils.py",
        status="read",
        policy="xinference:Xinference",
        block_size=1,
        memory="static",
        traits="xinference",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
    ),
)
