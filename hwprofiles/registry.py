"""Finding a profile by name, alias or path, and filling what it has not measured.

A device without measurements takes the laws of its *relative*: their coefficients are efficiencies, so
putting them beside the other datasheet is the scaling. A dtype without measurements takes the law of the
nearest dtype. Either is labelled ``scaled``; what nobody measured is filled by `DEFAULT_LAWS` and labelled
``default``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hwprofiles.defaults import DEFAULT_LAWS, DTYPE_RELATIVES, WEIGHT_ONLY
from hwprofiles.dtypes import DTYPES
from hwprofiles.schema import HardwareProfile, Law, Source, SourceKind
from simulator.errors import InputError, UnknownNameError

__all__ = ["alias_names", "list_profiles", "load_profile"]

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def list_profiles() -> list[str]:
    """Names of the bundled profiles, sorted."""
    folder = files("hwprofiles") / "data"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


@lru_cache(maxsize=1)
def alias_names() -> dict[str, str]:
    """Alias to profile name. Only the head of each file is read, so that listing stays fast."""
    found: dict[str, str] = {}
    for name in list_profiles():
        for alias in _head_aliases(name):
            found[alias] = name
    return found


def load_profile(name: str | Path) -> HardwareProfile:
    """The profile called *name*: a bundled name, an alias, or the path of a YAML file.

    Raises `UnknownNameError` for a name nobody has, `InputError` for a file that cannot be used.
    """
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        return complete(parse_profile(Path(text)))
    key = text.lower().strip()
    key = key if key in list_profiles() else alias_names().get(key, "")
    if not key:
        raise UnknownNameError("gpu", text, {*list_profiles(), *alias_names()})
    return _bundled(key)


@lru_cache(maxsize=64)
def _bundled(name: str) -> HardwareProfile:
    return complete(_as_written(name))


@lru_cache(maxsize=64)
def _as_written(name: str) -> HardwareProfile:
    return parse_profile(bundled_path(name))


def bundled_path(name: str) -> Path:
    """Where the profile *name* of this package lies."""
    return Path(str(files("hwprofiles") / "data" / f"{name}.yaml"))


def _head_aliases(name: str) -> list[str]:
    with bundled_path(name).open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("aliases:"):
                return [str(alias) for alias in yaml.load(line, Loader=LOADER)["aliases"]]
            if line.startswith("datasheet:"):
                break
    return []


def parse_profile(path: Path) -> HardwareProfile:
    """The profile in the file *path* as written, nothing filled in."""
    try:
        content = yaml.load(path.read_bytes(), Loader=LOADER)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(path, f"is not YAML: {' '.join(str(error).split())}") from error
    try:
        return HardwareProfile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        value = None if isinstance(first["input"], (dict, list)) else first["input"]
        raise InputError(path, first["msg"], field=place or None, value=value) from error


def complete(profile: HardwareProfile) -> HardwareProfile:
    """*profile* with a law for every family and dtype: measured, else a relative's, else the default."""
    laws = {law.key: law for law in profile.laws}
    for relative in _relatives(profile):
        for law in relative.laws:
            if law.family != "gemm" or _runs(profile, law.dtype):
                carried = _scaled(law, f"{relative.name}: {law.source.text}")
                laws.setdefault(law.key, _on_other_sms(carried, relative, profile))
    for law in DEFAULT_LAWS:
        laws.setdefault(law.key, law)
    for (family, dtype), relatives in DTYPE_RELATIVES.items():
        _fill_dtype(laws, family, dtype, relatives if _runs(profile, dtype) else WEIGHT_ONLY)
    return profile.model_copy(update={"laws": list(laws.values())})


def _relatives(profile: HardwareProfile) -> list[HardwareProfile]:
    """The relative of *profile*, its relative and so on, each as written, until one comes again."""
    chain, seen, name = [], {profile.name}, profile.relative
    while name is not None and name not in seen:
        seen.add(name)
        chain.append(_as_written(name))
        name = chain[-1].relative
    return chain


def _runs(profile: HardwareProfile, dtype: str) -> bool:
    """Whether the device multiplies in *dtype*; an engine runs any other as weight-only."""
    compute = DTYPES[dtype].compute if dtype in DTYPES else dtype
    return compute in profile.peak_flops or compute in ("bf16", "fp16")


def _fill_dtype(
    laws: dict[tuple[str, str, str], Law], family: str, dtype: str, relatives: tuple[str, ...]
) -> None:
    if (family, dtype, "") in laws:
        return
    for relative in relatives:
        law = laws.get((family, relative, ""))
        if law is not None:
            filled = _scaled(law, f"{relative} law: {law.source.text}")
            laws[family, dtype, ""] = filled.model_copy(update={"dtype": dtype})
            return


def _scaled(law: Law, text: str) -> Law:
    """*law* on another device or dtype: the same efficiencies, no claim of a held-out error."""
    kind: SourceKind = "default" if law.source.kind == "default" else "scaled"
    source = Source(kind=kind, text=law.source.text if kind == "default" else text, date=law.source.date)
    spread = law.spread if kind == "default" else max(law.spread, SCALED_SPREAD)
    own: dict[str, Any] = {"held_out": None, "quantiles": {}, "points": None}
    return law.model_copy(update={"source": source, "spread": spread, **own})


def _on_other_sms(law: Law, relative: HardwareProfile, profile: HardwareProfile) -> Law:
    """*law* of products for SMs with less arithmetic than the relative's, or with more power for it.

    A small tile is held up by what moves on the chip, not by arithmetic: where an SM computes less, the same tile
    reaches more of its peak. Measured fp8 GEMMs of H20, whose SMs do a quarter of H100's arithmetic, reach 3.5 and 3.8
    times H100's share of the peak with small tiles; the ratio of the peaks per SM is 3.95.

    A large product of a card that is held back by its power limit reaches a share of the peak that follows the power
    per peak FLOP. L40S (350 W for 362 TFLOP/s) is such a card: 0.68 of its peak at 1,024 tokens, 0.58 at 8,192. RTX PRO
    6000 has 1.33 times the power per FLOP: by this rule 0.86, measured 0.86 and 0.89 (products of 4,096 and 8,192 in
    bf16, zzc0721/torch-performance-test-data issue 162).
    """
    if law.family != "gemm":
        return law
    dtype = "bf16" if "bf16" in relative.peak_flops and "bf16" in profile.peak_flops else "fp16"
    less, spare = (
        getter(relative, dtype) / getter(profile, dtype) for getter in (_arithmetic_per_sm, _flops_per_watt)
    )
    ratio = max(less, spare if relative.name in POWER_LIMITED else 1.0)
    if ratio < LESS_ARITHMETIC:
        return law
    coefficients = {
        name: min(value * ratio, max(value, BEST_EFFICIENCY)) if name.startswith("ec_") else value
        for name, value in law.coefficients.items()
    }
    return law.model_copy(update={"coefficients": coefficients, "residual": None})


def _arithmetic_per_sm(profile: HardwareProfile, dtype: str) -> float:
    return profile.peak_flops[dtype] / profile.num_sms


def _flops_per_watt(profile: HardwareProfile, dtype: str) -> float:
    """Infinite where the power is not known: none is taken to be spare."""
    return math.inf if profile.tdp_watts is None else profile.peak_flops[dtype] / profile.tdp_watts


LESS_ARITHMETIC = 1.3
"""Ratio of the peaks per SM, or per watt, from which tiles are taken to be held up less."""
POWER_LIMITED = ("l40s-48gb",)
"""Measured devices whose share of the peak falls as products grow beyond what any tile explains."""
BEST_EFFICIENCY = 0.745
"""Share of the peak up to which a tile's efficiency is raised: with all seven at it the law, a soft best of them,
reaches 0.95, as do the best of the measured products of H20 in fp8 (RTX 4090 in bf16: 0.92 to 1.0,
zzc0721/torch-performance-test-data issue 78)."""
SCALED_SPREAD = 0.15
"""Least spread of ln(measured / predicted) granted to a law carried over from another device."""
