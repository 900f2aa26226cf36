"""An observation on disk: JSON lines, written as things happen, so that what was seen outlives whoever watched.

    {"observation": 1, "source": …}     the header, first
    {"request": {…}}                    when a request has ended, whatever the way
    {"sample": {…}}                     the server's counters
    {"ended": "complete"}               last, and only if it came to that

A file whose last line is cut short, or that does not say how it ended, is a run that was killed: it is read as far as
it goes and marked.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from calibrate.observe.observation import Header, MetricsSample, Observation, ObservedRequest
from simulator.errors import InputError

__all__ = ["Journal", "is_observation", "read_observation", "write_observation"]

VERSION = 1
DIGITS = 6
"""Microseconds: finer than a client can see."""


class Journal:
    """Appends to *path*, line by line; a context manager."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file: IO[str] = path.open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(path, f"cannot be written: {error.strerror}") from error
        self._line({"observation": VERSION, **asdict(header)})

    def request(self, request: ObservedRequest) -> None:
        """A request has ended."""
        self._line({"request": asdict(request)})

    def sample(self, sample: MetricsSample) -> None:
        """The server's counters."""
        self._line({"sample": asdict(sample)})

    def end(self, reason: str) -> None:
        """Nothing more will come."""
        self._line({"ended": reason})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _line(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")
        self._file.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_observation(observation: Observation, path: Path) -> None:
    """Write the whole of *observation*."""
    with Journal(path, observation.header) as journal:
        for request in observation.requests:
            journal.request(request)
        for sample in observation.samples:
            journal.sample(sample)
        if observation.ended is not None:
            journal.end(observation.ended)


def is_observation(path: Path) -> bool:
    """Whether *path* begins as an observation does."""
    try:
        with path.open(encoding="utf-8") as file:
            return '"observation"' in file.readline(64)
    except (OSError, UnicodeDecodeError):
        return False


def read_observation(path: Path) -> Observation:
    """Read what `Journal` wrote. Raises `InputError`; a file cut short is read as far as it goes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not text: {error.reason}") from error
    entries = [entry for number, line in enumerate(lines, 1) if (entry := _entry(path, lines, number, line))]
    if not entries or entries[0].get("observation") != VERSION:
        raise InputError(
            path, f"is not an observation of version {VERSION}, which `sim calibrate observe` writes"
        )
    header = Header(**_known(path, Header, {**entries[0], "observation": None}))
    observation = Observation(header, [], ended=None, path=path)
    for entry in entries[1:]:
        _take(observation, path, entry)
    observation.requests.sort(key=lambda request: request.arrival)
    return observation


def _entry(path: Path, lines: list[str], number: int, line: str) -> dict[str, Any] | None:
    """The object of a line; None for a last line that was cut short."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        if number == len(lines) and number > 1:
            return None
        raise InputError(path, f"must be JSON: {error}", line=number) from error
    if not isinstance(entry, dict):
        raise InputError(path, "must be a JSON object", line=number)
    return entry


def _take(observation: Observation, path: Path, entry: dict[str, Any]) -> None:
    if "request" in entry:
        values = _known(path, ObservedRequest, entry["request"])
        for name in ("sent", "first_token", "finish"):
            values[name] = math.nan if values.get(name) is None else values[name]
        values["content"] = [(int(name), int(tokens)) for name, tokens in values.get("content", ())]
        observation.requests.append(ObservedRequest(**values))
    elif "sample" in entry:
        observation.samples.append(MetricsSample(**_known(path, MetricsSample, entry["sample"])))
    elif "ended" in entry:
        observation.ended = entry["ended"]


def _known(path: Path, kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """*values* as arguments of *kind*."""
    names = {field.name for field in fields(kind)}
    given = {name: value for name, value in values.items() if name in names}
    required = ("id", "arrival", "input_length", "output_wanted") if kind is ObservedRequest else ()
    for name in required:
        if given.get(name) is None:
            raise InputError(path, "a request without it cannot be used", field=name)
    return given
