"""Hardware: what is known of a device, where each number comes from and how far it may be trusted."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import charts, library, measured, roofline, state, uploading
from hwprofiles import HardwareProfile, Law, list_profiles, load_profile
from simulator.errors import SimError
from simulator.models import list_models
from simulator.steptime.measured_points import measured_points

__all__ = ["page"]

NOBODY = "nothing"
KINDS = {
    "measured": "measured on this device",
    "fitted": "fitted to measurements of this device",
    "scaled": "scaled from a related device",
    "datasheet": "of the datasheet",
    "default": "a default, nobody measured it",
}


def page() -> None:
    """Draw the page."""
    st.markdown("### Hardware")
    st.caption(
        "A device is its datasheet and its laws: how long an operator takes, with source, range and error."
    )
    names = [*list_profiles(), *library.uploads("gpu")]
    left, right, upload = st.columns([2, 2, 2])
    now = st.session_state[state.key("gpu")]
    first = left.selectbox(
        "Device", names, names.index(now) if now in names else 0, format_func=library.title_of
    )
    second = right.selectbox("Compared with", [NOBODY, *names], format_func=library.title_of)
    with upload, st.expander("Upload a profile"):
        uploading.upload("gpu", "Calibrated profile (YAML)", "As `sim calibrate fit` writes it.", "hardware")
    chosen = [first] if second in (NOBODY, first) else [first, second]
    try:
        profiles = [load_profile(library.path_of(name)) for name in chosen]
        _draw(profiles, chosen)
    except SimError as error:
        st.error(library.error_text(error))


def _draw(profiles: list[HardwareProfile], chosen: list[str]) -> None:
    st.dataframe(
        pd.DataFrame({p.name: _datasheet(p) for p in profiles}).reset_index(names=""), hide_index=True
    )
    for profile in profiles:
        st.caption(f"{profile.name}: datasheet and limits from {library.plain(profile.datasheet.source)}.")
    st.markdown("**Roofline, with the operators of a step on it**")
    st.caption("A point below its roof is time that the datasheet does not explain. Size: share of the step.")
    columns = st.columns([2, 1, 1, 1])
    models = list_models()
    model = columns[0].selectbox("Model", models, models.index("llama-3.1-8b"))
    batch = columns[1].number_input("Decoding sequences", 1, 4096, 32)
    context = columns[2].number_input("Context of each (tokens)", 1, 131_072, 1024, step=256)
    prompt = columns[3].number_input("Prefill (tokens)", 0, 131_072, 0, step=256)
    work = [roofline.operators(model, library.path_of(name), batch, context, prompt) for name in chosen]
    charts.draw(roofline.roofline_figure(profiles, work), "roofline")
    st.markdown("**Laws against measurements and datasheet**: matrix products in bf16")
    st.caption(
        "Lines: the fitted law. Band: the middle 80 % of measurements that the fit had not seen lay in it, and it ends "
        "where the data end; no band: none was held out on this device. Dotted: what the datasheet allows."
    )
    charts.draw(roofline.law_figure(profiles), "laws")
    for profile in profiles:
        _measured(profile)
        _provenance(profile)


def _datasheet(profile: HardwareProfile) -> dict[str, str]:
    sheet, price = profile.datasheet, profile.datasheet.price
    peaks = ", ".join(f"{dtype} {peak / 1e12:,.0f}" for dtype, peak in sheet.peak_flops.items())
    return {
        "Peak, dense (TFLOP/s)": peaks,
        "Memory, as the driver reports it (GB)": f"{profile.memory_bytes / 1e9:,.1f}",
        "Memory bandwidth (TB/s)": f"{sheet.memory_bandwidth / 1e12:.2f}",
        "GPU to GPU, one direction (GB/s)": f"{profile.link_bandwidth / 1e9:,.0f}"
        f" ({'NVLink' if profile.has_nvlink else 'PCIe'})",
        "SMs, L2 (MiB)": f"{sheet.num_sms}, "
        + ("not known" if sheet.l2_bytes is None else f"{sheet.l2_bytes / 2**20:,.0f}"),
        "Power (W)": "not known" if sheet.tdp_watts is None else f"{sheet.tdp_watts:,.0f}",
        "Price ($/h)": f"{price.usd_per_hour:.2f} ({price.date or 'no date'})" if price else "none obtained",
        "Laws": profile.provenance.removeprefix("laws: "),
    }


def _measured(profile: HardwareProfile) -> None:
    points = measured_points(profile)
    if not points:
        st.caption(
            f"{profile.name} carries no measurements to hold its laws against: a profile that `sim calibrate fit` "
            "writes does, upload yours."
        )
        return
    st.markdown(f"**{profile.name}: fitted against measured**")
    st.caption("Some of the measurements that each law was fitted to. Dotted: 20 % off. Hover for the shape.")
    left, right = st.columns([3, 2])
    with left:
        charts.draw(measured.figure(points), f"measured.{profile.name}")
    right.dataframe(measured.table(points), hide_index=True)


def _provenance(profile: HardwareProfile) -> None:
    with st.expander(f"Laws of {profile.name}: source, range and held-out error"):
        laws = sorted(profile.laws, key=lambda law: (list(KINDS).index(law.source.kind), law.key))
        st.dataframe(pd.DataFrame([_law_row(law) for law in laws]), hide_index=True)
        st.caption("; ".join(f"{kind}: {words}" for kind, words in KINDS.items()))
    whole = [run.text() for run in profile.end_to_end] + [costs.text() for costs in profile.serving]
    if whole or profile.validation:
        st.markdown(f"**{profile.name}: predicted against measured, whole steps and runs**")
        st.markdown("\n".join(f"- {library.plain(line)}" for line in [profile.validation, *whole] if line))


def _law_row(law: Law) -> dict[str, object]:
    return {
        "law": "/".join(filter(None, law.key)),
        "kind": law.source.kind,
        "held-out error (%)": None if law.held_out is None else round(100 * law.held_out.mean_ape, 1),
        "rows": None if law.held_out is None else law.held_out.rows,
        "valid for": ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in law.range.items()),
        "source": law.source.text,
        "date": law.source.date,
    }
