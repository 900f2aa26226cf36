"""Beam search: the *beam_width* likeliest continuations, kept side by side.

The search lives outside the scheduler: every beam is a request for one more token of its own prompt, and
the prefix cache makes beams with a common past share its blocks. So it runs under every policy. Scores are
those of transformers' ``generate(num_beams=...)``: the sum of log probabilities over length to the power
of *length_penalty*; at every step the best two candidates per beam are looked at, those that end compete
with what has ended before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.executor import Executor
from engine.params import SamplingParams
from engine.sequence import Sequence
from simulator.errors import ConfigurationError

__all__ = ["Beam", "BeamSearchParams", "beam_search"]


@dataclass(frozen=True)
class BeamSearchParams:
    """*early_stopping* ends the search when *beam_width* beams have ended, whatever might still become
    better.
    """

    beam_width: int
    max_tokens: int = 16
    length_penalty: float = 1.0
    early_stopping: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.beam_width <= MAX_WIDTH:
            raise ConfigurationError(f"beam_width {self.beam_width}: must be between 1 and {MAX_WIDTH}")
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens {self.max_tokens}: must be at least 1")


MAX_WIDTH = 32


@dataclass(frozen=True)
class Beam:
    """A continuation: its tokens, the sum of their log probabilities, and the score it is ranked by."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0


@dataclass
class Search:
    """The beams of one prompt."""

    prompt: list[int]
    params: BeamSearchParams
    eos: frozenset[int]
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Beam] = field(default_factory=list)
    done: bool = False

    @property
    def width(self) -> int:
        """Candidates looked at in every step: enough that as many as there are beams go on."""
        return max(2, 1 + len(self.eos)) * self.params.beam_width

    def extend(self, continuations: list[dict[int, float]]) -> None:
        """Take the next token's log probabilities after each running beam."""
        pairs = zip(self.running, continuations)
        candidates = [
            Beam((*beam.tokens, token), beam.logprob + logprob)
            for beam, table in pairs
            for token, logprob in table.items()
        ]
        candidates.sort(key=lambda beam: -beam.logprob)
        del candidates[self.width :]
        full = len(candidates[0].tokens) >= self.params.max_tokens
        ends = [full or beam.tokens[-1] in self.eos for beam in candidates]
        self._end([beam for beam, end in zip(candidates[: self.params.beam_width], ends) if end])
        self.running = [beam for beam, end in zip(candidates, ends) if not end][: self.params.beam_width]
        self.done = not self.running or not self._can_improve()

    def _end(self, beams: list[Beam]) -> None:
        if self.params.early_stopping and len(self.ended) >= self.params.beam_width:
            return
        self.ended += [Beam(beam.tokens, beam.logprob, self._score(beam)) for beam in beams]
        self.ended.sort(key=lambda beam: -beam.score)
        del self.ended[self.params.beam_width :]

    def _can_improve(self) -> bool:
        if len(self.ended) < self.params.beam_width:
            return True
        return not self.params.early_stopping and self._score(self.running[0]) > self.ended[-1].score

    def _score(self, beam: Beam) -> float:
        length: float = len(beam.tokens) ** self.params.length_penalty
        return beam.logprob / length


def beam_search(
    executor: Executor, run: Callable[[], None], prompts: list[list[int]], params: BeamSearchParams
) -> list[list[Beam]]:
    """The best beams of every prompt, best first; *run* steps *executor* until nothing is left to do."""
    eos = frozenset() if params.ignore_eos else executor.eos
    searches = [Search(prompt, params, eos) for prompt in prompts]
    while open_searches := [search for search in searches if not search.done]:
        groups = [_ask(executor, search) for search in open_searches]
        run()
        for search, sequences in zip(open_searches, groups):
            search.extend([_table(sequence) for sequence in sequences])
    return [search.ended for search in searches]


def _ask(executor: Executor, search: Search) -> list[Sequence]:
    wanted = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=search.width)
    return [executor.add([*search.prompt, *beam.tokens], wanted)[0] for beam in search.running]


def _table(sequence: Sequence) -> dict[int, float]:
    if sequence.error is not None or not sequence.logprobs or sequence.logprobs[0] is None:
        raise ConfigurationError(f"beam search: {sequence.error or 'a beam was not computed'}")
    return sequence.logprobs[0].top
