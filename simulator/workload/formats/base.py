"""What an importer is: how its files are recognised, the units it defines, and how its columns become a
`Draft`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError, InputError
from simulator.workload.content import Blocks, Runs
from simulator.workload.rows import Rows
from simulator.workload.source import Head

__all__ = ["TIME_UNITS", "Draft", "Format", "Options", "block_runs", "text_lengths", "time_unit"]

TIME_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Ticks per second of each unit."""


@dataclass(frozen=True)
class Options:
    """What a caller settles about a file; None leaves it to the format's own definition."""

    time_unit: str | None = None
    block_size: int | None = None
    characters_per_token: float | None = None


@dataclass
class Draft:
    """Columns of a file in its own order and unit; what is None the file does not say."""

    input_length: NDArray[np.int64]
    output_length: NDArray[np.int64]
    time: NDArray[Any] | None = None
    """Arrival in *unit*; NaN where a delay governs."""
    unit: str = "s"
    delay: NDArray[Any] | None = None
    """In *unit*."""
    content: Runs | Blocks | None = None
    block_size: int | None = None
    keep: NDArray[np.bool_] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    accumulates: bool = False
    """Whether a later turn's input_length and content are only what the turn adds to its session."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Further columns of `Trace.from_columns`: max_tokens, session, turn, model, request_id, ..."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One importer."""

    name: str
    title: str
    recognises: Callable[[Head], bool]
    read: Callable[[Rows, Options], Draft]
    zero_output: str | None = None
    """What an output of 0 tokens means here: 'drop' where the format uses it for failures, None for an error.
    """


def time_unit(
    rows: Rows, options: Options, definition: str | None, why: str = "the format does not define it"
) -> str:
    """The option, else the format's definition; neither is an error that names the option."""
    unit = options.time_unit or definition
    if unit is None:
        raise InputError(rows.path, f"the unit of time is not known ({why}): say --time-unit s, ms, us or ns")
    if unit not in TIME_UNITS:
        raise ConfigurationError(f"time unit {unit!r}: must be one of {', '.join(TIME_UNITS)}")
    return unit


def block_runs(rows: Rows, name: str, input_length: NDArray[np.int64], block_size: int) -> Blocks | None:
    """Content of a column of block ids, or None without that column.

    A prompt has ceil(input_length / block_size) blocks, or one less where a partial last block is left out.
    """
    if not rows.has(name):
        return None
    if block_size < 1:
        raise ConfigurationError(f"block size {block_size}: must be at least 1")
    offsets, ids = rows.lists(name)
    blocks = np.diff(offsets)
    wrong = (blocks > -(-input_length // block_size)) | ((blocks < input_length // block_size) & (blocks > 0))
    if wrong.any():
        row = int(wrong.argmax())
        expected = f"must fit input_length {int(input_length[row])}, in blocks of {block_size} tokens"
        raise rows.error(row, name, f"{int(blocks[row])} blocks", f"{expected}: say the file's --block-size")
    return Blocks(offsets, ids, block_size, input_length)


def text_lengths(
    rows: Rows, field: str, texts: list[Any], options: Options, default: int | None = None
) -> list[int]:
    """Tokens of *texts* by the caller's rule; *default* for those that are missing (None: an error)."""
    rule = options.characters_per_token
    if rule is None:
        raise InputError(rows.path, "holds text, not lengths: say --characters-per-token (English: about 4)")
    if not 0 < rule < float("inf"):
        raise ConfigurationError(f"characters per token {rule}: must be above 0 and finite")
    for row, text in enumerate(texts):
        if not isinstance(text, str) and not (text is None and default is not None):
            raise rows.error(row, field, text, "must be text")
    return [default or 1 if text is None else max(1, round(len(text) / rule)) for text in texts]
