"""What was measured and what the fit makes of it: roofline, fitted against measured, residuals, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.fit.families import predict_rows
from calibrate.fit.raw import predicted_steps, read_frames, step_frame
from calibrate.measure.records import RawFolder
from calibrate.report.figures import laid_out, line, markers, percent
from calibrate.report.fit_figures import Frames, fitted_figure, residual_figure, roofline
from calibrate.report.html import figure_section, table, write_page
from hwprofiles import HardwareProfile, load_profile
from simulator.models import load_model
from simulator.results.figures import PALETTE
from simulator.results.report import lines, section
from simulator.steptime import HostTraits, StepTime
from simulator.steptime.law_collective import CollectiveLaw
from simulator.steptime.laws import FAMILY_LAWS, LawSet
from simulator.steptime.measured_points import SIZE

__all__ = ["write_fit_report"]

SHOWN_BLOCKS = (1, 4, 16, 64, 256)
FOOTER = "Times are medians of repeated calls. Held out: predicted by a fit that had not seen the shape."


def write_fit_report(
    raw: Path, profile_path: Path, out: Path, model: str | None = None, more: Sequence[str] = ()
) -> Path:
    """The page of the samples in *raw* and the profile fitted to them; *more* are sections of validations."""
    profile, folder = load_profile(profile_path), RawFolder(raw)
    meta, frames = folder.meta(), with_predictions(read_frames(raw), profile)
    steps = predicted_whole_steps(folder, profile, model or meta["model"])
    sections = [
        section("What the profile says", table(law_table(profile, frames))),
        figure_section(
            "Roofline", "Measured rates of the operators under the ceilings.", roofline(frames, meta)
        ),
        figure_section("Fitted against measured", "Points on the line are exact.", fitted_figure(frames)),
        figure_section("Residuals", "Measured over fitted, less one, by size.", residual_figure(frames)),
        step_section(steps, profile),
        moves_section(raw),
        launches_section(raw),
        section("What lies outside", lines(outside(profile, folder, frames), "Nothing was left out.")),
        clock_section(raw),
        section("Provenance", lines(provenance(profile, meta), "")),
        *more,
    ]
    subtitle = f"{meta['model']} in {meta['dtype']} on the bundled engine; {profile.measured_on}"
    return write_page(out, f"Calibration of {meta['device']}", subtitle, sections, FOOTER)


def with_predictions(frames: Frames, profile: HardwareProfile) -> Frames:
    """*frames* with ``fitted`` seconds, as far as the profile has measured laws for them."""
    laws, found = LawSet.from_profile(profile), {}
    for family, frame in frames.items():
        parts = []
        for (dtype, variant), rows in frame.groupby(["dtype", "variant"]):
            law = profile.law(family, str(dtype), str(variant))
            if law is not None and law.source.kind in ("measured", "fitted"):
                parts.append(rows.assign(fitted=predict_rows(laws.bound(*law.key), family, rows)))
        if parts:
            found[family] = pd.concat(parts, ignore_index=True)
    return found


def predicted_whole_steps(folder: RawFolder, profile: HardwareProfile, model: str) -> pd.DataFrame:
    """The measured whole steps with ``predicted`` seconds and their kind."""
    steps = folder.steps()
    if not steps:
        return pd.DataFrame(columns=["rows", "tokens", "seconds", "operators", "predicted", "kind"])
    bare = HostTraits(layer_overhead_s=0.0, graph_sizes=tuple(folder.meta()["graph_sizes"]))
    frame = step_frame(steps, StepTime(load_model(model), LawSet.from_profile(profile), None, bare))
    host = profile.host
    costs = np.array([host.per_step_s, host.per_seq_s, host.per_new_token_s])
    frame["predicted"] = predicted_steps(frame, costs)
    frame["kind"] = [
        "decode" if not step["prefills"] else "mixed" if step["decodes"] else "prefill" for step in steps
    ]
    return frame


def law_table(profile: HardwareProfile, frames: Frames) -> pd.DataFrame:
    """One row per measured law: held-out error, and range."""
    rows = []
    for law in profile.laws:
        if law.family not in frames or law.source.kind not in ("measured", "fitted"):
            continue
        held = law.held_out
        errors = ["", "", ""] if held is None else [held.mean_ape, held.median_ape, held.p90_ape]
        span = ", ".join(f"{name} {low:g}–{high:g}" for name, (low, high) in law.range.items() if low < high)
        rows.append(
            [
                "/".join(filter(None, law.key)),
                str(int((frames[law.family]["variant"] == law.variant).sum())),
                *("" if value == "" else f"{100 * float(value):.1f} %" for value in errors),
                span,
            ]
        )
    return pd.DataFrame(rows, columns=["law", "shapes", "mean error held out", "median", "p90", "range"])


def step_section(steps: pd.DataFrame, profile: HardwareProfile) -> str:
    """Whole steps, measured and predicted; half of them fitted the host."""
    if not len(steps):
        return section("Whole steps", lines([], "No whole steps were measured."))
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, (kind, rows) in enumerate(steps.groupby("kind")):
        figure.add_trace(markers(rows["seconds"] * 1e3, rows["predicted"] * 1e3, str(kind), PALETTE[place]))
    ends = np.array([steps["seconds"].min(), steps["seconds"].max()]) * 1e3
    figure.add_trace(line(ends, ends, "equal", "#9aa5b4"))
    figure.update_xaxes(type="log", title_text="measured, ms")
    figure.update_yaxes(type="log", title_text="predicted, ms")
    sums = steps.groupby("kind")[["seconds", "operators", "predicted"]].sum()
    rows = pd.DataFrame(
        {
            "kind": list(sums.index),
            "steps": [str(count) for count in steps.groupby("kind").size()],
            "measured, s": sums["seconds"].map("{:.4f}".format).tolist(),
            "of it operators": sums["operators"].map("{:.4f}".format).tolist(),
            "predicted, s": sums["predicted"].map("{:.4f}".format).tolist(),
            "error": (sums["predicted"] / sums["seconds"] - 1).map(percent).tolist(),
        }
    )
    return figure_section("Whole steps", profile.validation or "", laid_out(figure, 420), table(rows))


def outside(profile: HardwareProfile, folder: RawFolder, frames: Frames) -> list[str]:
    """What the engine could be asked for and was not measured, and samples that were not used."""
    meta, found = folder.meta(), []
    limits = meta.get("limits", {})
    wanted = {
        ("gemm", "m"): limits.get("max_num_batched_tokens"),
        ("decode_attention", "num_seqs"): limits.get("max_num_seqs"),
        ("decode_attention", "max_context"): limits.get("max_model_len"),
        ("prefill_attention", "chunk"): limits.get("max_num_batched_tokens"),
    }
    for (family, name), most in wanted.items():
        if family in frames and most and frames[family][name].max() < min(most, limits["max_model_len"]):
            found.append(
                f"{family.replace('_', ' ')}: {name} measured to {frames[family][name].max():g}, limit {most}"
            )
    needed = [family for family in SIZE if FAMILY_LAWS[family] is not CollectiveLaw]
    needed = [family for family in needed if family != "moe" or meta.get("config", {}).get("num_experts")]
    for law in profile.laws:
        asked = law.family in needed and law.dtype in ("bf16", "fp32")
        if asked and law.family not in frames and law.source.kind in ("default", "scaled"):
            found.append(f"{'/'.join(filter(None, law.key))}: {law.source.kind}, {law.source.text}")
    found += [f"{name}: not measured, {why}" for name, why in meta.get("not_measured", {}).items()]
    if left := meta.get("shots_left_out"):
        found.append(f"{left} shots left out for lack of time")
    if throttled := folder.throttled():
        found.append(f"{throttled} samples taken while the clock was down, kept apart and not fitted")
    return found


def moves_section(raw: Path) -> str:
    """Blocks copied and swapped: time and rate by pattern."""
    frame = _table_of(raw, "moves")
    if not len(frame):
        return ""
    rate = frame["bytes"] / frame["latency_us"] / 1e3
    cells = frame["latency_us"].map("{:,.0f} µs".format) + rate.map(", {:,.2g} GB/s".format)
    shown = frame.assign(cell=cells, place=frame["op"].str.replace("_", " ") + ", " + frame["pattern"])
    wide = shown.pivot_table(index="place", columns="blocks", values="cell", aggfunc="first").fillna("")
    shown_counts = [count for count in SHOWN_BLOCKS if (frame["blocks"] == count).any()]
    wide = wide[shown_counts].rename(columns="{} blocks".format)
    note = (
        "All layers of a block. Each: a copy call for every block of every layer, for K and for V. Gathered: a layer's "
        "blocks collected on the device, one copy, as the engine does. Coalesced: blocks that lie in a row, one copy."
    )
    return section("Blocks moved", table(wide.reset_index(names="")), note)


def launches_section(raw: Path) -> str:
    """Decode steps launched kernel by kernel and as a graph."""
    frame = _table_of(raw, "launches")
    if not len(frame):
        return ""
    pairs = frame.pivot_table(
        index=["num_seqs", "context"], columns="launch", values="latency_us"
    ).reset_index()
    if {"eager", "graph"} <= set(pairs.columns):
        pairs["eager / graph"] = (pairs["eager"] / pairs["graph"]).map("{:.2f}".format)
    shown = pairs.round(1).rename(columns={"eager": "eager, µs", "graph": "graph, µs"})
    return section("Launches", table(shown.astype(str)))


def _table_of(raw: Path, name: str) -> pd.DataFrame:
    path = raw / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def clock_section(raw: Path) -> str:
    """Clock and temperature in the order in which shots were taken, where the device told them."""
    tables = [pd.read_csv(path) for path in sorted(raw.glob("*.csv"))]
    log = pd.concat(
        [t[["clock_mhz", "temperature_c"]] for t in tables if "clock_mhz" in t] or [pd.DataFrame()]
    )
    log = log.dropna()
    if not len(log):
        return ""
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    order = np.arange(len(log))
    figure.add_trace(markers(order, log["clock_mhz"], "clock, MHz", PALETTE[0]))
    figure.add_trace(markers(order, log["temperature_c"], "temperature, °C", PALETTE[1]), secondary_y=True)
    return figure_section("Clock and temperature", "After every sample that was kept.", laid_out(figure, 300))


def provenance(profile: HardwareProfile, meta: dict[str, Any]) -> list[str]:
    """Device, software, seed, digest."""
    versions = ", ".join(f"{name} {value}" for name, value in meta["versions"].items())
    ceilings = meta["ceilings"]
    return [
        f"{meta['device']}, {meta['date']}; {versions}",
        f"{meta['kernels']}; seed {meta['seed']}; profile version {profile.version}",
        f"ceilings: copy {ceilings['copy_bytes_per_s'] / 1e9:,.1f} GB/s, "
        f"large product {ceilings['gemm_flops_per_s'] / 1e12:,.3g} TFLOP/s",
        f"samples: sha256 {profile.raw_data_digest}",
    ]
