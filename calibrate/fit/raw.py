"""From the raw samples of one machine to its hardware profile.

The laws of `calibrate.fit.families` are fitted to the operator tables; what whole steps take beyond the operators
is the host, t = a + b·sequences + c·tokens, by non-negative least squares on half of the steps. The other half says
what the whole is worth. Where the device is a known one its datasheet is kept; else "peaks" are 1.25 times the
best rate that any sample reached, so that efficiencies stay below one.

The simulator counts 16-bit elements; a CPU computes in fp32. Its laws are filed as bf16 and their efficiencies take
up the difference, which is exact as long as the engine computes in the format that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibrate.fit.families import FAMILIES
from calibrate.fit.law_fit import LawFit, error_summary
from calibrate.fit.profiles import LEAST_ROWS
from calibrate.measure.records import RawFolder
from calibrate.tables import COLUMNS, digest, read_folder
from hwprofiles import HardwareProfile, Law, Source, load_profile
from hwprofiles.datasheet import save_profile
from hwprofiles.registry import bundled_path, complete, parse_profile
from hwprofiles.schema import Datasheet, HeldOut, Host, Memory
from simulator.errors import InputError, UnknownNameError
from simulator.models import ModelSpec, load_model
from simulator.steptime import HostTraits, StepTime
from simulator.steptime.law_collective import traffic_share
from simulator.steptime.law_gemm import gemm_bytes, gemm_flops
from simulator.steptime.laws import LawSet

__all__ = ["RawFit", "fit_raw", "host_traits", "predicted_steps", "read_frames", "step_frame"]

HEADROOM = 1.25
LEAST_STREAM = 6
"""Rows for a law of few coefficients; others need `LEAST_ROWS`."""
FEW_COEFFICIENTS = ("stream", "copies", "link", "ring")
LEAST_SURFACE = 30
"""Rows from which a law is corrected: they are of the one model that the profile will be used for."""
STANDS_FOR = {"float32": "bf16"}
"""Formats of the engine that no profile knows, and the one whose laws they become."""
BACKENDS = {"gloo": "nccl"}
"""Between CPU processes gloo does what NCCL does between GPUs."""
LINKS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
Frames = dict[str, pd.DataFrame]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class RawFit:
    """A fitted profile, where it was written, and the error on whole steps that the fit did not see."""

    profile: HardwareProfile
    path: Path
    steps: HeldOut | None


def fit_raw(raw: Path, out: Path, model: str | None = None) -> RawFit:
    """Fit the samples in *raw* and write the profile to *out*, a file ending in ``.yaml``.

    *model* is where the measured model's configuration lies now, if it has moved.
    """
    if out.suffix != ".yaml":
        raise InputError(out, "must end in .yaml, so that --gpu finds it by its path")
    folder = RawFolder(raw)
    meta, frames = folder.meta(), read_frames(raw)
    base = _device(meta, frames, out.stem)
    laws = [_law(base, *key, rows, meta) for key, rows in _groups(frames)]
    if not laws:
        raise InputError(raw, f"holds no table of at least {LEAST_ROWS} rows: measure with a larger --budget")
    version = parse_profile(out).version + 1 if out.exists() else 1
    profile = base.model_copy(update={"laws": laws, "raw_data_digest": digest(raw), "version": version})
    fitted, held_out = _with_host(profile, load_model(model or meta["model"]), folder.steps(), meta)
    out.parent.mkdir(parents=True, exist_ok=True)
    return RawFit(fitted, save_profile(fitted, out.parent), held_out)


def host_traits(host: Host, graph_sizes: Sequence[int] = ()) -> HostTraits:
    """The bundled engine's own host and launch behaviour: what was measured, nothing else."""
    return HostTraits(
        per_step_s=host.per_step_s,
        per_seq_s=host.per_seq_s,
        per_new_token_s=host.per_new_token_s,
        graph_sizes=tuple(graph_sizes),
        layer_overhead_s=host.layer_overhead_s,
        source=host.source.text,
        status=host.source.kind,
    )


def read_frames(raw: Path) -> Frames:
    """The operator tables of *raw*, in the formats that their laws are filed under."""
    frames = read_folder(raw)
    for frame in frames.values():
        frame["dtype"] = frame["dtype"].replace(STANDS_FOR)
        frame["variant"] = frame["variant"].replace(BACKENDS)
    return {family: _of_variant(family, frame) for family, frame in frames.items()}


def _of_variant(family: str, frame: pd.DataFrame) -> pd.DataFrame:
    """One rank to another has no other implementation that it had to be told from."""
    return frame.assign(variant="") if family == "send_recv" else frame


def _groups(frames: Frames) -> Iterable[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The rows of each (family, dtype, variant) that are enough for a law."""
    for family, frame in frames.items():
        least = LEAST_STREAM if FAMILIES[family].form in FEW_COEFFICIENTS else LEAST_ROWS
        for (dtype, variant), rows in frame.groupby(["dtype", "variant"], sort=True):
            if len(rows) >= least:
                yield (family, str(dtype), str(variant)), rows


def _law(
    base: HardwareProfile, family: str, dtype: str, variant: str, rows: pd.DataFrame, meta: dict[str, Any]
) -> Law:
    text = f"bundled engine on {meta['device']}, {meta['model']} in {meta['dtype']}: {len(rows)} shots"
    fit = LawFit(family, base, dtype, variant, shape=COLUMNS[family], least_rows=LEAST_SURFACE).fit(rows)
    return fit.law(Source(kind="measured", text=text, date=meta["date"]))


# the device


def _device(meta: dict[str, Any], frames: Frames, name: str) -> HardwareProfile:
    """A known device's datasheet without its laws, or one from what was measured."""
    provenance: dict[str, Any] = {
        "name": name,
        "aliases": [],
        "laws": [],
        "measured_on": f"{meta['device']}, {meta['date']}",
        "software": {**meta["versions"], "kernels": meta["kernels"], "seed": str(meta["seed"])},
        "end_to_end": [],
    }
    known = _bundled(meta["device"])
    if known is not None:
        memory = known.memory.model_copy(update={"visible_bytes": float(meta["memory_bytes"])})
        return known.model_copy(
            update={**provenance, "device": known.name, "relative": known.name, "memory": memory}
        )
    return HardwareProfile(
        vendor="unknown",
        architecture=meta["kind"],
        datasheet=_measured_datasheet(meta, frames),
        memory=_memory(meta),
        host=_no_host(meta),
        **provenance,
    )


def _bundled(device: str) -> HardwareProfile | None:
    """The bundled profile of *device* as torch names it (``NVIDIA H200``), as written."""
    short = device.lower().removeprefix("nvidia ").replace(" ", "-")
    for name in (short, short.split("-")[0]):
        try:
            return parse_profile(bundled_path(load_profile(name).name))
        except UnknownNameError:
            continue
    return None


def _measured_datasheet(meta: dict[str, Any], frames: Frames) -> Datasheet:
    flops, rate = meta["ceilings"]["gemm_flops_per_s"], meta["ceilings"]["copy_bytes_per_s"]
    if "gemm" in frames:
        m, n, k, seconds = (frames["gemm"][name].to_numpy(float) for name in ("m", "n", "k", "seconds"))
        flops = max(flops, float(np.max(gemm_flops(m, n, k) / seconds)))
        rate = max(rate, float(np.max(gemm_bytes(m, n, k, "bf16") / seconds)))
    for family in ("elementwise", "kv_write", "sampling"):
        if family in frames:
            rate = max(rate, float((frames[family]["moved"] / frames[family]["seconds"]).max()))
    if "decode_attention" in frames:
        rate = max(rate, _best_kv_rate(frames["decode_attention"]))
    swaps = [frames[family] for family in ("swap_out", "swap_in") if family in frames]
    host_link = max((float((frame["moved"] / frame["seconds"]).max()) for frame in swaps), default=rate)
    link, peak = _best_link(frames), HEADROOM * flops
    notes = [] if swaps else ["pcie_bandwidth: that of memory"]
    notes += [] if link is None else ["nvlink_bandwidth: of whatever joins the ranks"]
    return Datasheet(
        peak_flops={"bf16": peak, "fp16": peak},
        memory_bytes=float(meta["memory_bytes"]),
        memory_bandwidth=HEADROOM * rate,
        nvlink_bandwidth=link,
        pcie_bandwidth=HEADROOM * host_link,
        num_sms=int(meta["units"]),
        l2_bytes=float(meta["l2_bytes"]) if meta.get("l2_bytes") else None,
        source=f"no datasheet: {HEADROOM} times the best rates measured on {meta['device']}",
        confidence="measured",
        notes=notes,
    )


def _best_link(frames: Frames) -> float | None:
    """The "peak" of what joins the ranks, B/s; none where a single one was measured."""
    rates = []
    for name in LINKS:
        if name in frames:
            share = traffic_share(name, frames[name]["num_gpus"])
            rates.append((share * frames[name]["message"] / frames[name]["seconds"]).max())
    if "send_recv" in frames:
        rates.append((frames["send_recv"]["message"] / frames["send_recv"]["seconds"]).max())
    return HEADROOM * float(max(rates)) if rates else None


def _best_kv_rate(frame: pd.DataFrame) -> float:
    moved = 4.0 * frame["sum_context"] * frame["n_kv"] * frame["head_dim"]
    return float((moved / frame["seconds"]).max())


def _memory(meta: dict[str, Any]) -> Memory:
    return Memory(
        visible_bytes=float(meta["memory_bytes"]),
        cuda_context_bytes=0.0,
        activation_factor=11.0,
        graph_pool_bytes=0.0,
        nccl_bytes=0.0,
        source=Source(
            kind="measured", text=f"memory of {meta['device']}; activations assumed", date=meta["date"]
        ),
    )


def _no_host(meta: dict[str, Any]) -> Host:
    text = "no whole steps were measured"
    nothing = {
        "per_step_s": 0.0,
        "per_seq_s": 0.0,
        "launch_s": 0.0,
        "graph_launch_s": 0.0,
        "layer_overhead_s": 0.0,
    }
    return Host(**nothing, source=Source(kind="default", text=text, date=meta["date"]))


# whole steps


def step_frame(steps: Sequence[dict[str, Any]], operators: StepTime) -> pd.DataFrame:
    """Each step's rows, new tokens, seconds, and the seconds of its operators."""
    rows = []
    for step in steps:
        prefills = [(int(chunk), int(context)) for chunk, context in step["prefills"]]
        predicted = operators.seconds(step["decodes"], step["decode_context"], prefills)
        tokens = step["decodes"] + sum(chunk for chunk, _ in prefills)
        rows.append((step["decodes"] + len(prefills), tokens, step["seconds"], predicted))
    return pd.DataFrame(rows, columns=["rows", "tokens", "seconds", "operators"])


def _with_host(
    profile: HardwareProfile, model: ModelSpec, steps: list[dict[str, Any]], meta: dict[str, Any]
) -> tuple[HardwareProfile, HeldOut | None]:
    """*profile* with its host block, from half of the *steps*, and the error on the other half."""
    if len(steps) < 2 * LEAST_ROWS:
        return profile, None
    bare = HostTraits(layer_overhead_s=0.0, graph_sizes=tuple(meta["graph_sizes"]))
    frame = step_frame(steps, StepTime(model, LawSet.from_profile(complete(profile)), None, bare))
    dealt = np.random.default_rng(0).permutation(len(frame)) % 2 == 0
    costs = fit_host(frame[dealt])
    held_out = _judge(frame[~dealt], costs)
    text = f"bundled engine on {meta['device']}: {int(dealt.sum())} whole steps less their operators"
    host = _no_host(meta).model_copy(
        update={
            "per_step_s": float(costs[0]),
            "per_seq_s": float(costs[1]),
            "per_new_token_s": float(costs[2]),
            "source": Source(kind="measured", text=text, date=meta["date"]),
        }
    )
    return profile.model_copy(
        update={"host": host, "validation": _verdict(frame[~dealt], costs, held_out)}
    ), held_out


def fit_host(frame: pd.DataFrame, rounds: int = 8) -> Vector:
    """(per step, per sequence, per token) in seconds: relative, robust, none negative."""
    design = np.column_stack([np.ones(len(frame)), frame["rows"], frame["tokens"]])
    target = (frame["seconds"] - frame["operators"]).to_numpy(float)
    scale = 1.0 / frame["seconds"].to_numpy(float)
    weights = np.ones(len(frame))
    costs = np.zeros(3)
    for _ in range(rounds):  # a step that was interrupted must not pull: absolute errors, by reweighting
        factor = scale * np.sqrt(weights)
        costs = np.asarray(nnls(design * factor[:, None], target * factor)[0])
        weights = 1.0 / np.maximum(np.abs(design @ costs - target) * scale, 1e-2)
    return costs


def predicted_steps(frame: pd.DataFrame, costs: Vector) -> Vector:
    """Seconds of every step: operators and host."""
    host = costs[0] + costs[1] * frame["rows"] + costs[2] * frame["tokens"]
    return np.asarray(frame["operators"] + host, dtype=float)


def _judge(frame: pd.DataFrame, costs: Vector) -> HeldOut:
    errors = predicted_steps(frame, costs) / frame["seconds"].to_numpy(float) - 1.0
    mean, median, p90 = (float(f"{value:.4g}") for value in error_summary(errors))
    return HeldOut(mean_ape=mean, median_ape=median, p90_ape=p90, rows=len(frame), split="half of the steps")


def _verdict(frame: pd.DataFrame, costs: Vector, held_out: HeldOut) -> str:
    total = float(predicted_steps(frame, costs).sum() / frame["seconds"].sum())
    return (
        f"{held_out.rows} whole steps held out: median error {100 * held_out.median_ape:.1f} %, "
        f"mean {100 * held_out.mean_ape:.1f} %, total predicted / measured {total:.3f}"
    )
