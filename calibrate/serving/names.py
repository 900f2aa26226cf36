"""What publications call a GPU, a model, a system or a precision, and what we call it. Rules, no lists of rows.

A GPU label is split into words; a profile fits when the label holds all words of its chip (``h100``, ``rtx pro
6000``), names no other form factor, and among those the nearest memory size wins.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from hwprofiles import list_profiles
from hwprofiles.registry import alias_names
from simulator.errors import UnknownNameError
from simulator.models import load_model
from simulator.scheduling.system import find_system, list_systems
from simulator.steptime.traits import list_traits, nearest_traits

__all__ = ["SystemChoice", "find_gpu", "find_model", "find_precision", "find_serving_system"]

FORMS = ("sxm", "pcie", "nvl")
FORM_WORDS = {"sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm"}
NOT_CHIP = re.compile(r"\d+gb|sxm\d?|pcie|nvl|server")
HOST_MEMORY = 2.0
"""Times the largest device memory of a chip, beyond which a label's gigabytes are not the device's."""
BRANDS = ("nvidia", "amd", "geforce", "instinct", "tesla")


@cache
def find_gpu(label: str) -> str:
    """The profile that *label* means. Raises `UnknownNameError`.

    >>> find_gpu("A100 PCIe 80GB (NVLink pairs)"), find_gpu("h200_sxm"), find_gpu("RTX PRO 6000 Blackwell")
    ('a100-pcie-80gb', 'h200-sxm-141gb', 'rtx-pro-6000-server-96gb')
    """
    named = [word for word in _words(label) if not re.fullmatch(r"\d+gb", word)]
    for text in ("-".join(_words(label)), "-".join(named) if len(named) == 1 and named[0].isdigit() else ""):
        if text in alias_names():
            return alias_names()[text]
    words = set(_words(label)) - set(BRANDS)
    form = next(
        (FORM_WORDS.get(word, word) for word in sorted(words) if FORM_WORDS.get(word, word) in FORMS), None
    )
    size = next((int(word[:-2]) for word in sorted(words) if re.fullmatch(r"\d+gb", word)), None)
    fitting = [name for name in list_profiles() if _fits(name, words, form)]
    if not fitting:
        raise UnknownNameError("gpu", label, list_profiles())
    if size is not None and size > HOST_MEMORY * max(_memory(name) for name in fitting):
        size = min(int(_memory(name)) for name in fitting)  # a superchip's label states the memory of its CPU
    return min(fitting, key=lambda name: _distance(name, form, size))


def _words(label: str) -> list[str]:
    text = re.sub(r"\(.*?\)", " ", label.lower()).replace(" gb", "gb")
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def _fits(name: str, words: set[str], form: str | None) -> bool:
    chip = {word for word in name.split("-") if not NOT_CHIP.fullmatch(word)}
    forms = {FORM_WORDS.get(word, word) for word in name.split("-")} & set(FORMS)
    return chip <= words and (form is None or not forms or form in forms)


def _distance(name: str, form: str | None, size: int | None) -> tuple[int, float, bool]:
    """Most words of the chip first, then the memory, then SXM where the label does not say."""
    chip = [word for word in name.split("-") if not NOT_CHIP.fullmatch(word)]
    return -len(chip), 0.0 if size is None else abs(_memory(name) - size), "sxm" not in name


def _memory(name: str) -> float:
    """GB, from the name of a profile."""
    return float(name.rsplit("-", 1)[1].removesuffix("gb"))


@cache
def find_model(label: str) -> str:
    """The zoo's name for *label*, or the label itself where the zoo understands it. Raises `UnknownNameError`."""
    text = re.sub(r"\(.*?\)", "", label).strip()
    load_model(text)
    return text


PRECISIONS = (
    (r"4x.*|w4a16|int4.*|awq|gptq|4[- ]?bit|q4f16.*", "int4"),
    (r"q\d_.*", ""),
    (r"nvfp4|fp4", "nvfp4"),
    (r"mxfp4", "mxfp4"),
    (r"fp8.*|e4m3|8-bit float", "fp8"),
    (r"int8.*weight.*|int8_wo|w8a16", "int8_wo"),
    (r"int8.*|w8a8.*|sq", "int8"),
    (r"fp16|float16|half|f16", "fp16"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp32|float32", "fp32"),
)


def find_precision(label: str) -> str:
    """Our name for a number format. Raises `UnknownNameError`."""
    text = re.sub(r"\(.*?\)", "", label.lower()).strip()
    for pattern, name in PRECISIONS:
        if re.fullmatch(pattern, text):
            return name or text
    raise UnknownNameError("dtype", label, [name for _, name in PRECISIONS if name])


@dataclass(frozen=True)
class SystemChoice:
    """The system a row is simulated with, whose host costs it has, and what the reader must know about the choice."""

    system: str
    family: str
    traits: str | None = None
    note: str = ""


FAMILIES = {
    "vllm": "vllm",
    "nanovllm": "vllm",
    "vllmclassengine": "vllm",
    "trtllm": "tensorrt-llm",
    "tensorrtllm": "tensorrt-llm",
    "sglang": "sglang",
    "lmdeploy": "lmdeploy",
    "lmdeployturbomind": "lmdeploy",
    "lightllm": "lightllm",
    "tgi": "tgi",
    "deepspeedfastgen": "deepspeed-fastgen",
    "llama.cpp": "llama.cpp",
    "gptfast": "gpt-fast",
    "hftransformers": "hf-static",
    "fastertransformer": "fastertransformer",
}
"""Spellings without punctuation, and the systems of ours that they mean."""


def find_serving_system(label: str, version: str = "") -> SystemChoice:
    """The nearest system for *label* and *version*. Raises `UnknownNameError` for a system nothing here resembles."""
    key = re.sub(r"[^a-z0-9.]", "", re.sub(r"\(.*?\)", "", label.lower()))
    family = FAMILIES.get(key)
    if family is None:
        raise UnknownNameError("system", label, [system.name for system in list_systems()])
    newest = find_system(family)
    costs, release = newest.traits, _release(family, version)
    if _numbers(release) and any(name.startswith(f"{costs}-") for name in list_traits()):
        costs = nearest_traits(f"{costs}-{release}")
    known = [s for s in list_systems() if s.name == family or s.name.startswith(f"{family}-")]
    alike = [s for s in known if s.traits == costs] or [newest]
    system = min(alike, key=lambda s: _distance_of(s.version, release))
    stated = f"{label} {version}" if version else f"{label} without version"
    note = f"{stated}: modelled as {system.name} {system.version}, host costs of {costs}"
    return SystemChoice(system.name, family, costs, note)


RELEASED = {"vllm": {"2023": "0.2"}}
"""What was current in a year, for publications that date their version: vLLM 0.3 came out in January 2024."""


def _release(family: str, version: str) -> str:
    """*version*, or the one that was current in the year it names."""
    year = re.search(r"\b20\d\d\b", version)
    return RELEASED.get(family, {}).get(year[0], version) if year and not _numbers(version) else version


def _distance_of(ours: str, stated: str) -> float:
    """How far two versions are apart; nought where none is stated, without end where ours is a commit."""
    first, second = _numbers(ours), _numbers(stated)
    if not second:
        return 0.0
    return abs(100 * (first[0] - second[0]) + first[1] - second[1]) if first else math.inf


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; none where there is no version in *text*."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()
