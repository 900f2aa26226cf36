"""MLC-LLM: prompts as soon as they fit, beside the decodes of all who run.

An iteration is the first action that finds something to do: prefill, else decode. Prefill looks at the queue in
order while there is a free page for every running sequence: a prompt goes in whole if the batch stays within
*prefill_chunk_size* tokens, if pages are left for one more step of everybody, and if eight more steps of
everybody stay within *max_total_sequence_length*; else, where only the tokens are too many, cut to what is left
of them, and the batch is closed. A prompt that is cut stays at the front of the queue. In the default, hybrid
mode the running sequences' next tokens are part of the prefill batch; with *prefill_mode* ``chunked`` they
stand still. Decode needs a free page per sequence, used or not; the last to run is preempted until there is
one.

Read in mlc-llm 00c44c3c (cpp/serve/engine_actions/batch_prefill_base.cc); decode and preemption after 79d603f0.
The radix prefix cache, sliding windows and speculation are not modelled. Inferred: where only a cut prompt that
is not the first in the queue holds pages, and nothing else can run, it is preempted.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.system import Device, System
from simulator.scheduling.unshared import UnsharedPages

__all__ = ["SYSTEMS", "MlcLlm"]

WATERMARK_STEPS = 8
"""Decode steps of every sequence that must fit after a prefill (batch_prefill_base.cc)."""


class MlcLlm(UnsharedPages):
    """*max_num_sequence* sequences share *max_total_sequence_length* tokens in pages of *kv_cache_page_size*."""

    def __init__(
        self,
        *,
        max_total_sequence_length: int,
        kv_cache_page_size: int = 16,
        max_num_sequence: int = 4,
        max_single_sequence_length: int = 8192,
        prefill_chunk_size: int = 1024,
        prefill_mode: str = "hybrid",
        explicit: bool = False,
    ) -> None:
        if prefill_mode not in ("hybrid", "chunked"):
            raise ConfigurationError(f"prefill_mode {prefill_mode!r}: must be hybrid or chunked")
        if prefill_chunk_size < 2:
            raise ConfigurationError(f"prefill_chunk_size {prefill_chunk_size}: must be at least 2")
        pages = max_total_sequence_length // max(kv_cache_page_size, 1)
        room = min((pages - 1) * kv_cache_page_size, max_total_sequence_length - WATERMARK_STEPS)
        super().__init__(
            num_blocks=pages,
            block_size=kv_cache_page_size,
            max_num_seqs=max_num_sequence,
            max_length=min(max_single_sequence_length, room),
            explicit=explicit,
        )
        self.max_tokens = max_total_sequence_length
        self.chunk_size = prefill_chunk_size
        self.hybrid = prefill_mode == "hybrid"

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) - len(self._prefilling)

    def schedule(self, now: float) -> Batch | None:
        batch = Batch()
        if self.waiting and self.decoding.count <= self.free:
            self._prefill(batch)
        if not batch.prefills:
            self._make_room(batch)
            self._decode(batch)
        result = self._close(batch)
        if result is None and self._prefilling:
            self._preempt(batch, next(reversed(self._prefilling)))
            return self.schedule(now)
        return result

    # prefill

    def _prefill(self, batch: Batch) -> None:
        running = self.decoding.count
        tokens = pages = running  # everybody's next token, each of which may need a page
        taken: list[tuple[Request, int]] = []
        for request in self.waiting:
            left = request.target - request.computed
            chunk = left
            if not self._fits(len(taken) + 1, tokens + left, pages + self._blocks(left)):
                chunk = self.chunk_size - tokens
                if not 0 < chunk < left or not self._fits(
                    len(taken) + 1, tokens + chunk, pages + self._blocks(chunk)
                ):
                    break
            taken.append((request, chunk))
            tokens += chunk
            pages += self._blocks(chunk)
            if chunk < left:
                break
        if taken and self.hybrid:
            self._decode(batch)
        for request, chunk in taken:
            self._take(batch, request, chunk)

    def _fits(self, prompts: int, tokens: int, pages: int) -> bool:
        sequences = self.decoding.count + prompts
        total = self.decoding.computed + sum(request.computed for request in self._prefilling)
        return (
            sequences <= min(self.max_num_seqs, self.chunk_size)
            and tokens <= self.chunk_size
            and pages + sequences <= self.free
            and total + tokens + WATERMARK_STEPS * sequences <= self.max_tokens
        )

    def _take(self, batch: Batch, request: Request, chunk: int) -> None:
        if request not in self.running:
            self._start(batch, request, 0)
        self._grow(request, request.computed + chunk)
        self._compute(batch, request, chunk)
        if request.computed == request.target:
            self.waiting.remove(request)

    # decode

    def _make_room(self, batch: Batch) -> None:
        while self.decoding.count > self.free:
            self._preempt(batch, next(reversed(self.running)))

    def _preempt(self, batch: Batch, request: Request) -> None:
        if request in self._prefilling:
            self.waiting.remove(request)
        super()._preempt(batch, request)

    def cancel(self, request: Request, now: float) -> None:
        if request in self._prefilling:
            self.waiting.remove(request)
        super().cancel(request, now)

    def _steady(self, limit: int) -> int:
        """While there is a free page per sequence; who waits finds less and less room."""
        spare = self.free - self.decoding.count
        return self.decoding.iterations_within(spare, limit) if spare >= 0 else 0


def _defaults(device: Device) -> dict[str, int]:
    return {"max_num_sequence": 128}


SYSTEMS = (
    System(
        name="mlc-llm",
        version="00c44c3c",
        summary="prompts when they fit, decodes in the same forward, a page per sequence kept free, recompute",
        source="mlc-llm 00c44c3c, cpp/serve/engine_actions/batch_prefill_base.cc; config.h 79d603f0; server mode",
        status="read",
        policy="mlc_llm:MlcLlm",
        defaults=_defaults,
        memory="static",
        traits="cpp",
        capacity="max_total_sequence_length",
        capacity_in_tokens=True,
    ),
)
