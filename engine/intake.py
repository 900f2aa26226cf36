"""Who is inside: requests on their way into the scheduler, their samples, and out again.

A policy that forks sequences itself (``scheduler.forks``) gets one request for all samples of a prompt; its children
turn up in ``joining`` beside their parent. Other policies get a request for each sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from engine.content import extend_content
from engine.pages import Pages
from engine.params import SamplingParams
from engine.sequence import Sequence, Times, make_detokenizer
from engine.tokenizer import Tokenizer
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Scheduler
from simulator.scheduling.request import Request

__all__ = ["Intake"]


class Intake:
    """Takes prompts in for *scheduler* and keeps their sequences, ``live`` until they end."""

    def __init__(
        self,
        scheduler: Scheduler,
        pages: Pages,
        *,
        vocab_size: int,
        block_size: int,
        tokenizer: Tokenizer | None,
        eos: frozenset[int],
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        self.scheduler, self.pages = scheduler, pages
        self.tokenizer, self.eos = tokenizer, eos
        self.seed, self.clock = seed, clock
        self.block_size, self.vocab_size = block_size, vocab_size
        self.live: dict[Request, Sequence] = {}
        self._num_added = 0

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str | None = None,
        arrival_time: float | None = None,
    ) -> list[Sequence]:
        """Queue a prompt; its samples, a list that grows where the policy forks them later.

        Raises CapacityError where it can never run; then none of the samples is queued.
        """
        self._check(prompt)
        now = self.clock()
        name = request_id if request_id is not None else f"r{self._num_added}"
        group: list[Sequence] = []
        forks = self.scheduler.forks
        for k in range(1 if forks else params.n):
            own = name if forks or params.n == 1 else f"{name}/{k}"
            sample = self._sequence(prompt, params, own, k, now if arrival_time is None else arrival_time)
            sample.request.n = params.n if forks else 1
            try:
                self.scheduler.add(sample.request, now)
            except (CapacityError, ConfigurationError):
                self.cancel(group)
                raise
            self._enlist(sample, group)
        return group

    def _check(self, prompt: list[int]) -> None:
        if not prompt:
            raise CapacityError("an empty prompt: at least one token is needed to continue from")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self.vocab_size:
                raise CapacityError(f"token id {token}: must be between 0 and {self.vocab_size - 1}")

    def _sequence(
        self, prompt: list[int], params: SamplingParams, name: str, sample: int, arrival: float
    ) -> Sequence:
        index = self._num_added
        self._num_added += 1
        content: list[tuple[int, int]] = []
        extend_content(content, prompt, self.block_size)
        request = Request(
            name,
            len(prompt),
            params.max_tokens,
            arrival_time=arrival,
            index=index,
            priority=params.priority,
            content=content,
            ignore_eos=params.ignore_eos,
        )
        base = _mix(f"{self.seed}/{index}") if params.seed is None else params.seed
        seed = _mix(f"{base}/{sample}") if sample else base
        return Sequence(
            request,
            prompt,
            params,
            seed,
            Times(arrival),
            self.eos,
            detokenizer=make_detokenizer(self.tokenizer),
        )

    def _enlist(self, sequence: Sequence, group: list[Sequence]) -> None:
        sequence.request.payload = sequence
        sequence.index = len(group)
        sequence.group = group
        group.append(sequence)
        self.live[sequence.request] = sequence

    def cancel(self, group: list[Sequence], reason: str = "abort") -> None:
        """Drop all samples of a prompt wherever they are; their blocks are free when this returns."""
        alive = [sequence for sequence in group if self.live.pop(sequence.request, None) is not None]
        # A policy that forks drops the whole group with any of its sequences.
        for sequence in alive[:1] if self.scheduler.forks else alive:
            self.scheduler.cancel(sequence.request, self.clock())
        for sequence in alive:
            self.pages.free(sequence)
            sequence.finish(reason)

    def _child(self, parent: Sequence, request: Request) -> Sequence:
        """The policy forked *request* off *parent*: the same prompt, a random stream of its own."""
        k = len(parent.group)
        child = Sequence(
            request,
            parent.prompt,
            parent.params,
            _mix(f"{parent.group[0].seed}/{k}"),
            parent.times.copy(),
            self.eos,
            detokenizer=make_detokenizer(self.tokenizer),
        )
        self._enlist(child, parent.group)
        return child


def _mix(text: str) -> int:
    """A 62-bit seed from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
