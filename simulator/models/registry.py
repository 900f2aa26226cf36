"""The zoo: architecture fields of public models, as JSON beside this file, and how a name finds one.

A name is normalised before it is looked up: owner, precision and tuning suffixes fall away
(``nvidia/Llama-3.1-70B-Instruct-FP8`` is ``llama-3.1-70b`` with fp8 weights). Anything that is a path to a
file or directory is read as a Hugging Face configuration.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from simulator.errors import UnknownNameError
from simulator.models.dtypes import Precision
from simulator.models.spec import ModelSpec

__all__ = ["list_models", "load_model", "normalise"]

_PRECISION = {
    "fp8": "fp8",
    "fp8-dynamic": "fp8",
    "w8a8": "int8",
    "awq": "int4",
    "gptq": "int4",
    "int4": "int4",
    "int8": "int8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "bf16": "bf16",
    "fp16": "fp16",
}
_TUNING = re.compile(r"-(instruct|it|chat|hf|base|preview|original|v1|2407|2409|2507|0528|\d{4})(?=-|$)")


def list_models() -> list[str]:
    """Names in the zoo, sorted."""
    return sorted(
        entry.name.removesuffix(".json") for entry in _zoo().iterdir() if entry.name.endswith(".json")
    )


def load_model(source: str | Path) -> ModelSpec:
    """The model called *source* in the zoo, or read from a ``config.json`` (file or directory).

    >>> load_model("meta-llama/Llama-3.1-8B-Instruct").name
    'llama-3.1-8b'

    Raises UnknownNameError for a name that is neither, InputError for a configuration that cannot be used.
    """
    if isinstance(source, Path) or source.endswith(".json") or Path(source).is_dir():
        return ModelSpec.from_config(source)
    name, precision = normalise(source)
    if name not in _names():
        raise UnknownNameError("model", source.rsplit("/", 1)[-1], _names())
    spec = _from_zoo(name)
    if precision is None:
        return spec
    return replace(spec, native=Precision(weights=precision, kv=spec.native.kv, head=spec.native.head))


def normalise(name: str) -> tuple[str, str | None]:
    """(zoo name, precision that the name implies or None) of a Hugging Face id or a loose spelling.

    >>> normalise("nvidia/Llama-3.1-70B-Instruct-FP8")
    ('llama-3.1-70b', 'fp8')
    """
    key = name.rsplit("/", 1)[-1].lower().replace("_", "-").replace(" ", "-")
    precision = None
    for suffix, dtype in sorted(_PRECISION.items(), key=lambda item: -len(item[0])):
        if re.search(rf"-{suffix}(?=-|$)", key):
            key, precision = re.sub(rf"-{suffix}(?=-|$)", "", key), precision or dtype
    for candidate in _spellings(key):
        if candidate in _names():
            return candidate, precision
    return key, precision


def _spellings(key: str) -> list[str]:
    """*key* as it is, without tuning suffixes, with the usual variations, or the one name that it begins."""
    bare = _TUNING.sub("", _TUNING.sub("", key))
    spellings = [key, bare]
    for text in (key, bare):
        text = text.removeprefix("meta-")
        spellings += [text, re.sub(r"^llama-?(\d)", r"llama-\1", text)]
        spellings.append(re.sub(r"-v0\.\d$", "", text))
    prefixed = [name for name in _names() if name.startswith(f"{bare}-")]
    return [*spellings, *prefixed] if len(prefixed) == 1 else spellings


@cache
def _names() -> frozenset[str]:
    return frozenset(list_models())


@cache
def _from_zoo(name: str) -> ModelSpec:
    text = (_zoo() / f"{name}.json").read_text(encoding="utf-8")
    return ModelSpec.from_config(json.loads(text), name)


def _zoo() -> Traversable:
    return files("simulator.models") / "zoo"
