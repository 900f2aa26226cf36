"""How far the laws of the shipped profiles are from a table of measurements."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibrate.fit.families import predict_rows
from calibrate.fit.law_fit import error_summary
from calibrate.fit.resident import resident_rows
from hwprofiles import DTYPES, HardwareProfile, load_profile
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.steptime.laws import LawSet, bind

__all__ = ["Score", "score_frames", "summarize"]

RESIDENT = "_l2_resident"
"""Suffix of the operator's name for rows that a benchmark served from L2 and serving would stream."""
REASON = "the working set fits 1.5 x the L2 cache; the law predicts memory traffic, as in serving"


@dataclass(frozen=True, slots=True)
class Score:
    """Predicted rows, and why the others were not."""

    rows: pd.DataFrame
    """One row per prediction: operator, gpu, dtype, variant, source_kind, held_out, seconds, predicted,
    error."""
    skipped: Counter[str]
    """Rows without a prediction, by reason."""


def score_frames(frames: dict[str, pd.DataFrame]) -> Score:
    """Predict every row of *frames* (by family, see `calibrate.tables`) with the profile of its ``gpu``."""
    parts: list[pd.DataFrame] = []
    skipped: Counter[str] = Counter()
    for family, frame in frames.items():
        for (gpu, dtype, variant), rows in frame.groupby(["gpu", "dtype", "variant"], sort=True):
            try:
                profile = load_profile(str(gpu))
                parts.append(_predict(profile, family, str(dtype), str(variant), rows))
            except (UnknownNameError, ConfigurationError) as error:
                skipped[str(error)] += len(rows)
    columns = [
        "operator",
        "gpu",
        "dtype",
        "variant",
        "source_kind",
        "held_out",
        "seconds",
        "predicted",
        "error",
    ]
    return Score(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), skipped)


def _predict(
    profile: HardwareProfile, family: str, dtype: str, variant: str, rows: pd.DataFrame
) -> pd.DataFrame:
    law = LawSet.from_profile(profile).law(family, dtype, variant)
    predicted = predict_rows(bind(profile, law), family, rows)
    measured = rows["seconds"].to_numpy(float)
    known = dtype in DTYPES
    resident = resident_rows(family, rows, profile) if known else np.zeros(len(rows), dtype=bool)
    return pd.DataFrame(
        {
            "operator": np.where(resident, family + RESIDENT, family),
            "gpu": rows["gpu"].to_numpy(),
            "profile": profile.name,
            "dtype": dtype,
            "variant": variant,
            "source_kind": law.source.kind,
            "held_out": np.nan if law.held_out is None else law.held_out.mean_ape,
            "seconds": measured,
            "predicted": predicted,
            "error": predicted / measured - 1.0,
        }
    )


def summarize(
    rows: pd.DataFrame, by: tuple[str, ...] = ("operator", "gpu", "dtype")
) -> list[dict[str, object]]:
    """Mean, median and 90th percentile of the absolute relative error of every group, as fractions."""
    summary = []
    for key, part in rows.groupby(list(by), sort=True):
        mean, median, p90 = error_summary(part["error"].to_numpy(float))
        entry: dict[str, object] = {name: str(value) for name, value in zip(by, key, strict=True)}
        entry |= {"rows": len(part), "mean_ape": mean, "median_ape": median, "p90_ape": p90}
        entry |= {"source": str(part["source_kind"].iloc[0])}
        if str(entry["operator"]).endswith(RESIDENT):
            entry["reason"] = REASON
        summary.append(entry)
    return summary
