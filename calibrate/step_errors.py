"""Which steps of a recorded run the profile gets wrong: its own batches, one by one, measured and predicted.

A step is prefills alone, decodes alone or both; its device part is the forward pass, the logits and the sampling
(events of the stream on a GPU), the rest is the host's. Each part is held against the part of the profile that stands
for it, so that an error in a latency can be traced to attention at long contexts, to small batches, or to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from calibrate.fit.raw import predicted_steps, step_frame
from hwprofiles import load_profile
from simulator.steptime import HostTraits, StepTime

__all__ = ["BUCKETS", "predict_recorded", "summarize_steps", "worst_part"]

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Least rows of each group of batch sizes."""


def predict_recorded(recording: Mapping[str, Any], profile: str, steptime: StepTime) -> pd.DataFrame:
    """One row per recorded step with one forward: what it computed, and seconds measured and predicted.

    ``seconds``, ``predicted``; of these ``device`` and ``operators``, ``host`` and ``host_predicted``.
    """
    host = load_profile(profile).host
    bare = HostTraits(layer_overhead_s=host.layer_overhead_s, graph_sizes=tuple(recording["graph_sizes"]))
    operators = StepTime(steptime.model, steptime.laws, steptime.parallelism, bare, steptime.precision)
    steps = [step for step in recording["steps"] if "prefills" in step]
    frame = step_frame(steps, operators)
    frame["predicted"] = predicted_steps(
        frame, np.array([host.per_step_s, host.per_seq_s, host.per_new_token_s])
    )
    frame["device"] = [step.get("device_s", np.nan) for step in steps]
    frame["host"] = frame["seconds"] - frame["device"]
    frame["host_predicted"] = frame["predicted"] - frame["operators"]
    frame["start"] = [step["start"] for step in steps]
    frame["kind"] = [kind_of(step) for step in steps]
    frame["context"] = [step["decode_context"] for step in steps]
    return frame


def kind_of(step: Mapping[str, Any]) -> str:
    return "decode" if not step["prefills"] else "mixed" if step["decodes"] else "prefill"


def summarize_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Sums by ``kind`` (``rows`` is ``all``), then by kind and group of batch sizes."""
    place = np.searchsorted(BUCKETS, frame["rows"], side="right") - 1
    kinds = _sums(frame, ["kind"]).assign(rows="all")
    buckets = _sums(frame.assign(place=place), ["kind", "place"])
    buckets["rows"] = [_bucket_name(int(i)) for i in buckets.pop("place")]
    return pd.concat([kinds, buckets], ignore_index=True)


def _bucket_name(place: int) -> str:
    least = BUCKETS[place]
    if place + 1 == len(BUCKETS):
        return f"{least}-"
    return f"{least}" if BUCKETS[place + 1] == least + 1 else f"{least}-{BUCKETS[place + 1] - 1}"


def _sums(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    table = frame.assign(ape=(frame["predicted"] / frame["seconds"] - 1).abs()).groupby(keys)
    sums = table.agg(
        count=("seconds", "size"),
        measured=("seconds", "sum"),
        predicted=("predicted", "sum"),
        device=("device", "sum"),
        operators=("operators", "sum"),
        host=("host", "sum"),
        host_predicted=("host_predicted", "sum"),
        median_ape=("ape", "median"),
    )
    return sums.assign(error=sums["predicted"] / sums["measured"] - 1).reset_index()


def worst_part(frame: pd.DataFrame) -> str:
    """One line: which kind of step, and of it the device or the host, is off by most seconds."""
    table, total = _sums(frame, ["kind"]), float(frame["seconds"].sum())
    parts = {
        (str(row["kind"]), part): float(row[predicted] - row[measured])
        for row in table.to_dict("records")
        for part, measured, predicted in (
            ("device", "device", "operators"),
            ("host", "host", "host_predicted"),
        )
    }
    (kind, part), seconds = max(parts.items(), key=lambda item: abs(item[1]))
    share = 100 * seconds / total
    return f"largest error: {part} time of {kind} steps, {seconds:+.4g} s ({share:+.1f} % of the time of all steps)"
