"""Rows that a benchmark served from L2 cache, and that a serving engine, which streams all layers, never
sees.

The collection's GEMM benchmark replays six weight copies; its attention benchmark replays one KV cache. A
row counts as resident if that working set is at most 1.5 times the L2 cache. Two kinds are kept all the
same, because memory is not what they measure: products whose FLOPs take twice as long as their bytes at
peak rates, and decode batches with so little KV (2 us at peak bandwidth) that launch and blocks rule.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hwprofiles import DTYPES, HardwareProfile
from simulator.steptime.law_gemm import gemm_bytes, gemm_flops
from simulator.steptime.laws import law_device

__all__ = ["resident_rows", "usable_rows"]

CACHE_SHARE = 1.5
"""A working set up to this many L2 sizes counts as resident: a part of it still hits."""
WEIGHT_COPIES = 6
"""Distinct weights per replay of the GEMM benchmark."""
COMPUTE_BOUND = 2.0
"""Compute over memory time at peak from which residency does not matter."""
LITTLE = 2e-6
"""KV read time at peak, s, below which the launch rules."""

Mask = NDArray[np.bool_]


def resident_rows(family: str, frame: pd.DataFrame, profile: HardwareProfile) -> Mask:
    """Rows whose working set fits the L2 cache of *profile*; none where its size is not known."""
    cache = CACHE_SHARE * (profile.l2_bytes or 0.0)
    if family == "gemm":
        return np.asarray(WEIGHT_COPIES * _weight_bytes(frame) <= cache)
    if family == "decode_attention":
        return np.asarray(_kv_bytes(frame) <= cache)
    return np.zeros(len(frame), dtype=bool)


def usable_rows(family: str, frame: pd.DataFrame, profile: HardwareProfile) -> Mask:
    """Rows to fit on: not resident, or resident but not measuring memory."""
    resident = resident_rows(family, frame, profile)
    if family == "gemm":
        return ~resident | _compute_bound(frame, profile)
    if family == "decode_attention":
        return ~resident | (_kv_bytes(frame) < LITTLE * profile.memory_bandwidth)
    return ~resident


def _weight_bytes(frame: pd.DataFrame) -> NDArray[np.float64]:
    size = frame["dtype"].map(lambda name: DTYPES[name].weight_bytes).to_numpy(float)
    return np.asarray(frame["n"].to_numpy(float) * frame["k"].to_numpy(float) * size)


def _kv_bytes(frame: pd.DataFrame) -> NDArray[np.float64]:
    size = frame["dtype"].map(lambda name: DTYPES[name].weight_bytes).to_numpy(float)
    elements = 2.0 * frame["sum_context"] * frame["n_kv"] * frame["head_dim"]
    return np.asarray(elements.to_numpy(float) * size)


def _compute_bound(frame: pd.DataFrame, profile: HardwareProfile) -> Mask:
    bound = np.zeros(len(frame), dtype=bool)
    for dtype, rows in frame.groupby("dtype").indices.items():
        m, n, k = (frame[name].to_numpy(float)[rows] for name in ("m", "n", "k"))
        device = law_device(profile, "gemm", str(dtype))
        compute = gemm_flops(m, n, k) / device.peak
        bound[rows] = compute > COMPUTE_BOUND * gemm_bytes(m, n, k, str(dtype)) / device.bandwidth
    return bound
