"""The columns of a trace: what values they may hold, and names as codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import InputError

__all__ = ["DEFAULTS", "MAX_LENGTH", "NAMES", "Categorical", "categorical", "floats", "integers"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_LENGTH = 100_000_000
"""Longest prompt or output accepted, in tokens: ten times the longest context window on offer (10 M, Llama 4
Scout)."""

DEFAULTS = {"max_tokens": 0, "priority": 0, "n": 1, "session": -1, "turn": 0}
LEAST = {"input_length": 1, "output_length": 1, "max_tokens": 0, "n": 1, "session": -1, "turn": 0}


NAMES = ("model", "tenant", "slo_class", "lora")
"""Categorical columns."""


class Categorical(NamedTuple):
    """A column of few distinct names: *codes* int32[n], −1 where there is none, into *names*."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Categorical:
        """From one name or None per request."""
        numbers: dict[str, int] = {}
        codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
        return cls(np.array(codes, np.int32), tuple(numbers))

    @classmethod
    def none(cls, n: int) -> Categorical:
        """*n* requests without a name."""
        return cls(np.full(n, -1, np.int32), ())

    def __iter__(self) -> Iterator[Any]:
        return (None if code < 0 else self.names[code] for code in self.codes.tolist())

    def __reduce__(self) -> tuple[type[Categorical], tuple[NDArray[np.int32], tuple[str, ...]]]:
        return Categorical, (self.codes, self.names)  # a tuple would be pickled by iterating over the names

    def __getitem__(self, index: Any) -> Any:
        """The name of request *index*, or None."""
        code = self.codes[index]
        return None if code < 0 else self.names[code]


def integers(name: str, values: ArrayLike, n: int) -> Ints:
    array = np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise TypeError(f"{name}: must be {n} integers, got {array.dtype}{list(array.shape)}")
    bad = array > MAX_LENGTH if name.endswith("length") or name == "max_tokens" else np.zeros(n, bool)
    if name in LEAST:
        bad = bad | (array < LEAST[name])
    if bad.any():
        where = int(bad.argmax())
        most = f" and at most {MAX_LENGTH}" if name.endswith("length") else ""
        allowed = f"must be at least {LEAST[name]}{most}"
        raise InputError("trace", allowed, field=f"{name}[{where}]", value=int(array[where]))
    return array.astype(np.int64)


def floats(name: str, values: ArrayLike, n: int) -> Floats:
    array = np.array(values, np.float64)
    if array.shape != (n,):
        raise TypeError(f"{name}: must be {n} numbers, got {list(array.shape)}")
    bad = (array < 0) | np.isinf(array)
    if bad.any():
        where = int(bad.argmax())
        raise InputError(
            "trace", "must be at least 0 and finite", field=f"{name}[{where}]", value=float(array[where])
        )
    return array


def categorical(name: str, values: Any, n: int) -> Categorical:
    if values is None:
        return Categorical.none(n)
    column = values if isinstance(values, Categorical) else Categorical.of(values)
    if len(column.codes) != n:
        raise TypeError(f"{name}: must have {n} entries, got {len(column.codes)}")
    return column
