"""The errors a user can cause, one small tree.

    SimError
    ├── InputError            a file: names file, line, field, value and what is allowed
    ├── UnknownNameError      a name that no registry holds: names the nearest one that exists
    ├── ConfigurationError    options that contradict each other, the model or the device
    └── CapacityError         it does not fit: memory, context, blocks

The command line prints ``str(error)`` as one line and exits 2. Anything else that
escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CapacityError", "ConfigurationError", "InputError", "SimError", "UnknownNameError"]

MOST_LISTED = 40
"""Names that an error lists."""


class SimError(Exception):
    """Base of every error that is the input's fault and not the program's."""

    def __reduce__(self) -> tuple[object, ...]:
        """An error travels between processes with its text, not by being made again."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[SimError], args: tuple[object, ...], state: dict[str, object]) -> SimError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(SimError):
    """A record of a file cannot be used.

    >>> print(InputError("t.jsonl", "must be at least 1", line=3, field="input_length", value=-4))
    t.jsonl:3: input_length: -4: must be at least 1
    """

    def __init__(
        self,
        path: object,
        allowed: str,
        *,
        line: int | None = None,
        field: str | None = None,
        value: object = None,
    ) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        parts = [place]
        if field is not None:
            parts.append(field)
        if value is not None:
            parts.append(shorten(value))
        super().__init__(": ".join([*parts, allowed]))
        self.path, self.line, self.field, self.value, self.allowed = path, line, field, value, allowed


class UnknownNameError(SimError):
    """A GPU, model, system or router that is not registered.

    >>> print(UnknownNameError("gpu", "h10", ["h100", "a100"]))
    unknown gpu 'h10': did you mean 'h100'?
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {_listed(names)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")
        self.kind, self.name, self.known = kind, name, names


def _listed(names: list[str]) -> str:
    """As many of *names* as a reader looks through."""
    rest = len(names) - MOST_LISTED
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:MOST_LISTED])} and {rest} more"


class ConfigurationError(SimError):
    """Options that contradict each other, the model or the device."""


class CapacityError(SimError):
    """Something does not fit: weights in memory, a prompt in the context, a request in the cache."""


def shorten(value: object, limit: int = 60) -> str:
    """*value* as text of at most *limit* characters, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
