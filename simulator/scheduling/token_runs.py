"""What a sequence consists of, token by token, kept as runs.

Real servers compare token ids one by one. Here a token is ``(name, index)``, so that a stretch of text is one
run and two sequences are compared run by run. A name whose tokens are all alike (a model that repeats itself)
has stride 0.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator

from simulator.scheduling.request import Request

__all__ = ["Tokens"]

Run = tuple[Hashable, int, int, int]
"""Name, stride, index of the first token, number of tokens."""


class Tokens:
    """A sequence of tokens; ``len()`` is their number."""

    __slots__ = ("_size", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._size = 0

    @classmethod
    def of_prompt(cls, request: Request, own: Hashable, alike: Container[Hashable] = ()) -> Tokens:
        """The prompt of *request*; what its content does not name is called *own*."""
        tokens = cls()
        for name, count in request.content:
            tokens.append(name, 0 if name in alike else 1, 0, count)
        tokens.append(own, 1, 0, request.prompt_length - len(tokens))
        return tokens

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[tuple[Hashable, int]]:
        for name, stride, first, count in self.runs:
            for i in range(count):
                yield name, first + stride * i

    @property
    def head(self) -> tuple[Hashable, int] | None:
        """The first token; sequences with different ones have nothing in common."""
        return (self.runs[0][0], self.runs[0][2]) if self.runs else None

    def append(self, name: Hashable, stride: int, first: int, count: int) -> None:
        """Add *count* tokens of *name* from index *first* on."""
        if count <= 0:
            return
        self._size += count
        if self.runs:
            last, _, start, before = self.runs[-1]
            if last == name and start + stride * before == first:
                self.runs[-1] = (name, stride, start, before + count)
                return
        self.runs.append((name, stride, first, count))

    def extend(self, other: Tokens, lo: int, hi: int) -> None:
        """Add tokens ``lo..hi`` of *other*."""
        at = 0
        for name, stride, first, count in other.runs:
            a, b = max(lo - at, 0), min(hi - at, count)
            if a < b:
                self.append(name, stride, first + stride * a, b - a)
            at += count

    def part(self, lo: int, hi: int) -> Tokens:
        """A copy of tokens ``lo..hi``."""
        found = Tokens()
        found.extend(self, lo, hi)
        return found

    def without(self, lo: int, hi: int) -> Tokens:
        """A copy that lacks tokens ``lo..hi``."""
        found = self.part(0, lo)
        found.extend(self, hi, self._size)
        return found

    def common_prefix(self, other: Tokens) -> int:
        """How many leading tokens both have."""
        common = i = j = 0
        a_used = b_used = 0
        while i < len(self.runs) and j < len(other.runs):
            name, stride, first, count = self.runs[i]
            other_name, _, other_first, other_count = other.runs[j]
            if name != other_name or first + stride * a_used != other_first + stride * b_used:
                break
            n = min(count - a_used, other_count - b_used)
            common, a_used, b_used = common + n, a_used + n, b_used + n
            if a_used == count:
                i, a_used = i + 1, 0
            if b_used == other_count:
                j, b_used = j + 1, 0
        return common

    def chunks(self, prompt: Tokens, start: int, least: int) -> list[tuple[int, int, int]]:
        """Stretches of at least *least* tokens that continue *prompt* from *start* on: (from, to, tokens)
        each.

        They are looked for from left to right, one token of this sequence after the other, and never apart
        in the prompt.
        """
        held, wanted = list(self), list(prompt)
        found: list[tuple[int, int, int]] = []
        at, to = start, start
        while at < len(held) and to < len(wanted):
            n = 0
            while at + n < len(held) and to + n < len(wanted) and held[at + n] == wanted[to + n]:
                n += 1
            if n >= least:
                found.append((at, to, n))
                at, to = at + n, to + n
            else:
                at += 1
        return found
