"""Result files of other load generators as observations: one way in, whatever wrote the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calibrate.observe.guidellm import guidellm_observations, is_guidellm
from calibrate.observe.journal import is_observation, read_observation
from calibrate.observe.observation import Observation
from calibrate.observe.vllm_bench import is_vllm_bench, vllm_bench_observation
from simulator.errors import InputError

__all__ = ["import_file", "read_recorded"]


def import_file(path: Path) -> list[Observation]:
    """The runs in *path*: a result of ``vllm bench serve --save-detailed`` or of guidellm (JSON).

    Raises `InputError` for a file that is cut short, or of which no request can be told from another.
    """
    found = [run for document in _documents(path) for run in _runs(document, path)]
    for run in found:
        run.path = path
        if not run.kept():
            raise InputError(path, "holds no request that the server worked on")
    return found


def read_recorded(path: Path) -> Observation:
    """One run, of `sim calibrate observe` or of a load generator. Raises `InputError` where a file holds several."""
    if is_observation(path):
        return read_observation(path)
    runs = import_file(path)
    if len(runs) > 1:
        raise InputError(path, f"holds {len(runs)} runs: take them apart with `sim calibrate import {path}`")
    return runs[0]


def _runs(document: Any, path: Path) -> list[Observation]:
    if is_vllm_bench(document):
        return [vllm_bench_observation(document, path)]
    if is_guidellm(document):
        return guidellm_observations(document, path)
    raise InputError(path, "is neither a result of `vllm bench serve` nor of guidellm")


def _documents(path: Path) -> list[Any]:
    """The JSON documents of a file; ``--append-result`` puts several into one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not text: {error.reason}") from error
    decoder, documents, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            whole = error.pos < len(text.rstrip()) - 1 and "Unterminated" not in error.msg
            what = f"{'is not JSON' if whole else 'is cut short'} at character {error.pos} of {len(text)}"
            raise InputError(path, f"{what}: {error.msg}") from error
        documents.append(document)
    if not documents:
        raise InputError(path, "is empty")
    return documents
