"""From a folder of measurements to the law blocks of the profiles.

One law is fitted per device, operator family, dtype and implementation. Profiles of devices that the tables
do not hold are left alone: they take the laws of their relative when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calibrate.fit.law_fit import LawFit
from calibrate.fit.resident import usable_rows
from calibrate.tables import digest, read_folder
from hwprofiles import DTYPES, HardwareProfile, Law, Source, load_profile
from hwprofiles.datasheet import save_profile
from hwprofiles.registry import bundled_path, parse_profile
from hwprofiles.schema import SourceKind

__all__ = ["Fitted", "fit_folder", "fit_frames"]

PUBLIC_DATE = "2026-08-21"
"""Date of the public collection the bundled laws are fitted to."""
LEAST_ROWS = 12
"""Rows below which a law is not fitted."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fitted law and the device it belongs to."""

    profile: HardwareProfile
    law: Law


def fit_folder(
    data: Path,
    out: Path,
    kind: SourceKind = "fitted",
    date: str = PUBLIC_DATE,
    report: Callable[[Fitted], None] | None = None,
) -> list[Path]:
    """Fit all tables of *data* and write the profiles they concern into *out*; deterministic.

    A profile is taken from *out* if it is there, else from the bundled ones; its other blocks are kept.
    Laws of the profile that the tables do not concern stay.
    """
    laws: dict[str, list[Law]] = {}
    for fitted in fit_frames(read_folder(data), kind, date):
        laws.setdefault(fitted.profile.name, []).append(fitted.law)
        if report is not None:
            report(fitted)
    out.mkdir(parents=True, exist_ok=True)
    raw_digest = digest(data)
    return [_write(_on_file(out, name), found, raw_digest, out) for name, found in sorted(laws.items())]


def fit_frames(frames: dict[str, pd.DataFrame], kind: SourceKind, date: str) -> Iterator[Fitted]:
    """Fit every law that *frames* (by family) hold enough rows for."""
    for family, frame in frames.items():
        for (gpu, dtype, variant), rows in frame.groupby(["gpu", "dtype", "variant"], sort=True):
            profile = load_profile(str(gpu))
            if dtype in (*DTYPES, "fp32"):
                usable = rows[usable_rows(family, rows, profile)]
                if len(usable) >= LEAST_ROWS:
                    fit = LawFit(family, profile, str(dtype), str(variant)).fit(usable)
                    source = Source(kind=kind, text=_origin(rows, len(usable)), date=date)
                    yield Fitted(profile, fit.law(source))


def _origin(rows: pd.DataFrame, usable: int) -> str:
    """The source of *rows* in words."""
    stacks = ", ".join(sorted(set(rows["source"])))
    resident = len(rows) - usable
    left_out = f"; {resident} resident in L2 left out" if resident else ""
    return f"{stacks}: {len(rows)} rows{left_out}"


def _on_file(out: Path, name: str) -> HardwareProfile:
    """The profile as written, without the laws that loading fills in."""
    path = out / f"{name}.yaml"
    return parse_profile(path if path.exists() else bundled_path(name))


def _write(profile: HardwareProfile, laws: list[Law], raw_digest: str, out: Path) -> Path:
    fresh = {law.key: law for law in laws}
    kept = [law for law in profile.laws if law.key not in fresh]
    merged = sorted([*kept, *laws], key=lambda law: law.key)
    update = {"laws": merged, "raw_data_digest": raw_digest}
    return save_profile(profile.model_copy(update=update), out)
