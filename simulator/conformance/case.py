"""Reading a recorded case and comparing it with our decisions."""

from __future__ import annotations

import gzip
import importlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError, UnknownNameError

__all__ = ["Case", "Difference", "Verdict", "check", "load_case"]

REPLAYS = {
    "hf-5.23.0": "hf_continuous",
    "llamacpp-0.3.36": "llamacpp",
    "lmdeploy-0.18.0": "lmdeploy",
    "mii-0.3.3": "splitfuse",
    "sglang-0.5.23": "sglang",
    "trtllm-5f480b7a": "trtllm",
    "lightllm-fc72ffab": "lightllm",
    "vllm-0.33": "vllm_v1",
    "vllm-0.11": "vllm_v1",
    "vllm-0.2.7": "vllm_027",
    "vllm-0.6": "vllm_v0",
}
"""Source prefix of a case → module of this package with ``replay(case) -> Iterator[(ours, theirs)]``."""


@dataclass(frozen=True)
class Case:
    """One recorded run: *source* (package and version), *config*, *requests* and *steps* as in the file."""

    path: Path
    source: str
    config: dict[str, Any]
    requests: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """The first iteration in which ours and theirs differ, field by field."""

    step: int
    ours: dict[str, Any]
    theirs: dict[str, Any]

    def __str__(self) -> str:
        fields = [
            f"{name}: ours {_short(self.ours.get(name))} theirs {_short(self.theirs.get(name))}"
            for name in self.theirs
            if self.ours.get(name) != self.theirs[name]
        ]
        return f"step {self.step}: " + "; ".join(fields)


@dataclass(frozen=True)
class Verdict:
    """What came of one case: how many iterations agreed, and the first that did not."""

    case: Case
    steps: int
    difference: Difference | None

    @property
    def identical(self) -> bool:
        return self.difference is None


def load_case(path: str | Path) -> Case:
    """Read ``*.json`` or ``*.json.gz``. Raises `InputError` for what is not a recorded case."""
    path = Path(path)
    try:
        data = path.read_bytes()
        raw = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        source = raw.get("source") or path.name
        return Case(path, str(source), raw.get("config", {}), raw["requests"], raw["steps"], raw)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"is not JSON: {error}") from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from None
    except (KeyError, AttributeError, TypeError):
        raise InputError(path, "is not a recorded case: it needs `requests` and `steps`") from None


def check(case: Case) -> Verdict:
    """Replay *case* through our policy up to the first difference."""
    steps = 0
    for ours, theirs in _replay(case):
        if any(ours.get(name) != value for name, value in theirs.items()):
            return Verdict(case, steps, Difference(int(theirs.get("step", steps)), dict(ours), dict(theirs)))
        steps += 1
    return Verdict(case, steps, None)


def _replay(case: Case) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for prefix, module in REPLAYS.items():
        if case.source.startswith(prefix) or case.path.name.startswith(prefix):
            return importlib.import_module(f"simulator.conformance.{module}").replay(case)  # type: ignore[no-any-return]
    raise UnknownNameError("recorded system", case.source, REPLAYS)


def _short(value: Any, limit: int = 160) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
