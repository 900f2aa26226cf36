"""Runs batches on one device: inputs up, forward pass, logits; every phase timed.

A batch of decodes alone replays a CUDA graph where one of its size or above was captured
(`engine.graphs`); everything else runs eagerly. Times are CUDA events on a GPU and the host's clock elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import BatchInput
from engine.cache import KVCache
from engine.graphs import DecodeGraphs
from engine.model import Decoder, Layout
from engine.pages import Moves

__all__ = ["PHASES", "ModelRunner", "StepTiming"]

PHASES = ("prepare", "forward", "logits", "sample")


@dataclass(frozen=True)
class StepTiming:
    """One step: its shape and the seconds of each phase; ``graph`` is the captured size it ran as, 0 for
    eager.
    """

    num_decodes: int
    num_prefills: int
    num_tokens: int
    decode_context: int
    graph: int
    prepare: float
    forward: float
    logits: float
    sample: float

    @property
    def seconds(self) -> float:
        """Sum of the phases."""
        return self.prepare + self.forward + self.logits + self.sample


class ModelRunner:
    """A decoder, its cache and its graphs; `run` gives the logits of the rows that are sampled."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        graphs: DecodeGraphs | None = None,
        *,
        keep_timings: int = 10_000,
    ) -> None:
        self.decoder, self.cache, self.graphs = decoder, cache, graphs
        self.timings: deque[StepTiming] = deque(maxlen=keep_timings)
        self.clock: Callable[[], float] = time.perf_counter
        """Of the host, s: what phases are timed by where there are no CUDA events."""
        self._cuda = decoder.device.type == "cuda"
        self._pending: deque[tuple[BatchInput, int, list[Mark]]] = deque()

    def run(self, batch: BatchInput) -> Tensor:
        """fp32 logits ``[len(batch.logit_rows), vocabulary]``, computed when the stream reaches them."""
        marks = [self._mark()]
        graph = self.graphs.size_for(batch) if self.graphs is not None else 0
        if graph and self.graphs is not None:
            self.graphs.load(batch, graph)
            marks.append(self._mark())
            hidden = self.graphs.replay(graph)
        else:
            tokens, layout = self.upload(batch)
            marks.append(self._mark())
            hidden = self.decoder.forward(tokens, layout, self.cache)
        marks.append(self._mark())
        logits = self.decoder.logits(hidden[self._to_device(batch.logit_rows)])
        marks.append(self._mark())
        self._pending.append((batch, graph, marks))
        return logits

    def move(self, moves: Moves) -> None:
        """Move blocks before a step: to the host, from it, and copies on the device."""
        self.cache.swap_out(moves.swap_out)
        self.cache.swap_in(moves.swap_in)
        self.cache.copy(moves.copies)

    def sampled(self) -> None:
        """The sampler of the last step is queued: its phase ends here."""
        self._pending[-1][2].append(self._mark())

    def abandon(self) -> None:
        """Forget steps whose end was never seen."""
        self._pending.clear()

    def finish(self) -> StepTiming:
        """Called once the oldest step's tokens are on the host: note its times."""
        batch, graph, marks = self._pending.popleft()
        phases = self._seconds(marks)
        timing = StepTiming(
            num_decodes=batch.num_decodes,
            num_prefills=len(batch.prefill_lens),
            num_tokens=batch.num_tokens,
            decode_context=int(batch.decode_lens.sum()),
            graph=graph,
            **dict(zip(PHASES, phases)),
        )
        self.timings.append(timing)
        return timing

    def upload(self, batch: BatchInput) -> tuple[Tensor, Layout]:
        """Tokens and layout of *batch* on the device."""
        up = self._to_device
        chunks = len(batch.prefill_lens)
        layout = Layout(
            positions=up(batch.positions),
            slots=up(batch.slots),
            num_decodes=batch.num_decodes,
            decode_table=up(batch.decode_table),
            decode_lens=up(batch.decode_lens),
            max_context=int(batch.decode_lens.max()) if batch.num_decodes else 0,
        )
        if chunks:
            layout.prefill_table = up(batch.prefill_table)
            layout.query_start = up(batch.query_start)
            layout.prefill_lens = up(batch.prefill_lens)
            layout.max_query = int((batch.query_start[1:] - batch.query_start[:-1]).max())
        return up(batch.tokens), layout

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.decoder.device, non_blocking=True) if self._cuda else tensor

    def _mark(self) -> Mark:
        if not self._cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, marks: list[Mark]) -> list[float]:
        if not self._cuda:
            return [b - a for a, b in pairwise(marks)]  # type: ignore[operator]
        marks[-1].synchronize()  # type: ignore[union-attr]
        return [a.elapsed_time(b) * 1e-3 for a, b in pairwise(marks)]  # type: ignore[union-attr, arg-type]


Mark = float | torch.cuda.Event
