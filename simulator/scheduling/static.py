"""Request-level batches: some requests start together, and nobody joins before all of them are done.

This is how models were served before iteration-level scheduling. A batch is taken from the queue when the device is
free; its KV cache is one rectangle, rows by the longest prompt and what may follow it. What happens to a row that ends
early, and when its answer is handed out, makes the difference (`StaticRules`):

- transformers' ``generate``: prompts are padded to the longest, ended rows go on computing pad tokens until the last
  row has ended, and the caller gets everything then (generation/utils.py);
- FasterTransformer: the cache is allocated for the longest output beforehand, padding is not computed, ended rows leave
  the computation; results at the end of the batch (docs/gpt_guide.md);
- CTranslate2: examples sorted by length, cut into batches, ended rows are gathered out (batch_reader.cc, decoding.cc);
- ONNX Runtime GenAI's static engine: four requests, halved for as long as memory refuses; tokens are handed out as
  they come, seats return with the batch (src/engine/scheduler.cpp);
- gpt-fast: one prompt, a cache of exactly its length and its output (generate.py).

The size of a batch is the caller's; a batch whose cache would not fit is made smaller, where the real library would
run out of memory. Beams and ragged forced prompts (CTranslate2) are not modelled; speculation is, in
`static_speculative`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.request import FINISHED, RUNNING, Request

__all__ = ["CTranslate2", "DynamicBatcher", "StaticBatch", "StaticRules"]

READ_BATCHES = 16
"""CTranslate2 reads this many batches before it sorts (batch_reader.cc, file mode)."""


@dataclass(frozen=True)
class StaticRules:
    """What differs between libraries.

    *padded*: prompts are computed at the length of the longest; *rows_stay*: ended rows are computed until the batch is
    done; *preallocated*: the cache has its final size from the start; *halving*: a batch that does not fit is halved,
    not cut; *delivery* as in `Scheduler`.
    """

    padded: bool
    rows_stay: bool
    preallocated: bool
    halving: bool = False
    delivery: str = "batch"


def _shape(requests: list[Request]) -> tuple[int, int]:
    """Longest prompt and longest possible output."""
    return max(r.prompt_length for r in requests), max(r.max_tokens for r in requests)


class StaticBatch(Scheduler):
    """Batches of at most *max_batch_size* requests in a KV memory of *max_total_tokens* tokens.

    *max_model_len* limits prompt and output together.
    """

    quiet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        rules: StaticRules,
        max_total_tokens: int,
        max_batch_size: int = 8,
        max_model_len: int = 2048,
        explicit: bool = False,
    ) -> None:
        super().__init__(max_num_seqs=max_batch_size, block_size=1, explicit=explicit)
        if max_total_tokens < 1:
            raise ConfigurationError(f"max_total_tokens {max_total_tokens}: must be at least 1")
        self.rules = rules
        self.delivery = rules.delivery
        self.capacity = max_total_tokens
        self.max_model_len = max_model_len
        self.waiting: deque[Request] = deque()
        self._rows = 0  # of the batch that runs, ended ones included
        self._width = 0  # tokens in each row of its cache
        self._limit = 0  # tokens that a row may come to

    # arrivals

    def add(self, request: Request, now: float) -> None:
        room = self.max_model_len - request.prompt_length
        if room < 1:
            raise CapacityError(
                f"the prompt leaves no room for output within max_model_len {self.max_model_len}"
            )
        request.max_tokens = min(request.max_tokens, room)
        need = request.prompt_length + request.max_tokens
        if need > self.capacity:
            raise CapacityError(f"prompt and output may need {need} tokens of KV, there are {self.capacity}")
        self.waiting.append(request)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    # a batch

    def schedule(self, now: float) -> Batch | Wait | None:
        if self._rows:
            return self._decode()
        if not self.num_waiting:
            return None
        size = self._choose(now)
        return size if isinstance(size, Wait) else self._begin(size)

    def _choose(self, now: float) -> int | Wait:
        """How many requests to take from the queue; a subclass may wait for more."""
        return min(len(self.waiting), self.max_num_seqs)

    def _take(self, size: int) -> list[Request]:
        """The next batch, at most *size* requests from the front of the queue: as many as fit the memory."""
        queue = self._source()
        if self.rules.halving:
            while not self._fits(size, *_shape([queue[i] for i in range(size)])):
                size //= 2
            return [queue.popleft() for _ in range(size)]
        taken: list[Request] = []
        prompt = output = 0
        while len(taken) < size:
            prompt, output = max(prompt, queue[0].prompt_length), max(output, queue[0].max_tokens)
            if not self._fits(len(taken) + 1, prompt, output):
                break
            taken.append(queue.popleft())
        return taken

    def _source(self) -> deque[Request]:
        return self.waiting

    def _fits(self, rows: int, prompt: int, output: int) -> bool:
        return rows * (prompt + output) <= self.capacity

    def _begin(self, size: int) -> Batch:
        batch, requests = Batch(), self._take(size)
        self._rows = len(requests)
        self._width, output = _shape(requests)
        self._limit = self._width + output
        for request in requests:
            request.status = RUNNING
            request.computed = request.prompt_length
            request.generated += 1
            self.running[request] = None
            self.decoding.join(request)
            batch.cached[request] = 0
            batch.prefills.append((request, request.prompt_length, 0))
            batch.joining.append(request)
        if self.rules.padded:
            batch.padded_tokens = self._rows * self._width - self.decoding.computed
        batch.iteration = self.decoding.iteration
        return batch

    def _decode(self) -> Batch:
        batch, decoding = Batch(), self.decoding
        if self.explicit:
            batch.decodes = list(decoding.members)
        decoding.advance()
        self._width += 1
        alive = decoding.count
        batch.num_decodes = rows = self._rows if self.rules.rows_stay else alive
        batch.idle_rows = rows - alive
        batch.decode_context = rows * self._width if self.rules.padded else decoding.computed
        batch.iteration = decoding.iteration
        batch.repeatable = True
        return batch

    # ends

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        for request in ended:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        """*request* has ended; the last one to end takes the batch and its memory away."""
        del self.running[request]
        self.decoding.leave(request)
        request.status = FINISHED
        if not self.running:
            self._rows = self._width = self._limit = 0

    def cancel(self, request: Request, now: float) -> None:
        if request.status is RUNNING:
            self._drop(request)
        else:
            self._unqueue(request)
            request.status = FINISHED

    def _unqueue(self, request: Request) -> None:
        self.waiting.remove(request)

    # many steps at once

    def repeats(self, batch: Batch, limit: int) -> int:
        return limit if batch.repeatable and not self.explicit else 1

    def advance(self, batch: Batch, n: int) -> None:
        self.decoding.advance(n)
        self._width += n
        batch.iteration += n
        batch.decode_context += n * batch.num_decodes

    # state

    @property
    def blocks_used(self) -> int:
        if self.rules.preallocated:
            return self._rows * self._limit
        rows = self._rows if self.rules.rows_stay else len(self.running)
        return rows * self._width

    @property
    def num_blocks(self) -> int:
        return self.capacity

    def waste(self) -> tuple[float, float, float, float]:
        """Reserved: columns of later tokens; internal: padding, and rows of ended sequences."""
        used = self.blocks_used
        columns = self._limit if self.rules.preallocated else self._width
        reserved = used - used // columns * self._width if columns else 0
        return reserved, used - reserved - self.decoding.computed, 0.0, 0.0


class CTranslate2(StaticBatch):
    """What is queued is a call: sorted by length, longest first, and cut into batches, which run one after the other.

    *max_batch_size* counts examples, or with *batch_type* ``tokens`` the padded prompt tokens of a batch.
    """

    def __init__(
        self,
        *,
        rules: StaticRules,
        max_total_tokens: int,
        max_batch_size: int = 32,
        batch_type: str = "examples",
        max_model_len: int = 2048,
        explicit: bool = False,
    ) -> None:
        if batch_type not in ("examples", "tokens"):
            raise ConfigurationError(f"batch_type {batch_type!r}: must be examples or tokens")
        super().__init__(
            rules=rules,
            max_total_tokens=max_total_tokens,
            max_batch_size=max_batch_size,
            max_model_len=max_model_len,
            explicit=explicit,
        )
        self.by_tokens = batch_type == "tokens"
        self._call: deque[Request] = deque()  # the rest of the call, sorted

    def _choose(self, now: float) -> int:
        if not self._call:
            count = min(len(self.waiting), READ_BATCHES * self.max_num_seqs)
            call = [self.waiting.popleft() for _ in range(count)]
            self._call.extend(sorted(call, key=lambda request: -request.prompt_length))
        if self.by_tokens:  # the first is the longest
            return min(len(self._call), max(self.max_num_seqs // self._call[0].prompt_length, 1))
        return min(len(self._call), self.max_num_seqs)

    def _source(self) -> deque[Request]:
        return self._call

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self._call)

    def _unqueue(self, request: Request) -> None:
        (self._call if request in self._call else self.waiting).remove(request)


class DynamicBatcher(StaticBatch):
    """Triton's dynamic batcher before such a model: it waits a little for a preferred size.

    A preferred size (*preferred_batch_size*, none: *max_batch_size*) goes out as soon as it is there, the largest that
    is; whatever is queued goes out when the oldest request is *max_queue_delay_microseconds* old. The queue
    still grows while the model is busy (dynamic_batch_scheduler.cc, model_config_utils.cc).
    """

    def __init__(
        self,
        *,
        rules: StaticRules,
        max_total_tokens: int,
        max_batch_size: int = 8,
        preferred_batch_size: Iterable[int] = (),
        max_queue_delay_microseconds: int = 0,
        max_model_len: int = 2048,
        explicit: bool = False,
    ) -> None:
        super().__init__(
            rules=rules,
            max_total_tokens=max_total_tokens,
            max_batch_size=max_batch_size,
            max_model_len=max_model_len,
            explicit=explicit,
        )
        self.preferred = sorted(preferred_batch_size) or [max_batch_size]
        for size in self.preferred:
            if not 1 <= size <= max_batch_size:
                raise ConfigurationError(
                    f"preferred_batch_size {size}: must be between 1 and max_batch_size {max_batch_size}"
                )
        if max_queue_delay_microseconds < 0:
            raise ConfigurationError(
                f"max_queue_delay_microseconds {max_queue_delay_microseconds}: must not be negative"
            )
        self.delay = max_queue_delay_microseconds * 1e-6

    def _choose(self, now: float) -> int | Wait:
        pending = min(len(self.waiting), self.max_num_seqs)
        due = self.waiting[0].arrival_time + self.delay
        if now >= due - 1e-9 * abs(due):
            return pending
        there = [size for size in self.preferred if size <= pending]
        return there[-1] if there else Wait(due)
