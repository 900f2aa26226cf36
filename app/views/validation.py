"""Validation: how far predictions were off on what the fits had not seen."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.express as px
import streamlit as st

from app import charts, library, predictions, running, state, terminal, uploading, work
from hwprofiles import list_profiles, load_profile
from simulator.steptime.engine_costs import engine_costs_file

__all__ = ["page"]

ALL = "all"


def page() -> None:
    """Draw the page."""
    st.markdown("### Validation")
    st.caption("Errors on rows that were held out of the fit, as mean absolute percentage errors.")
    names = ["Serving: TTFT and TPOT", "Predicted against measured", "Operators"]
    serving, figures, operators = st.tabs(names, on_change="rerun", key="validation.tabs")
    for tab, draw in ((serving, _serving), (figures, _figures), (operators, _operators)):
        if tab.open:
            with tab:
                draw()


def held_out_laws() -> pd.DataFrame:
    """One row per law with a held-out error; percent."""
    rows = []
    for name in list_profiles():
        for law in load_profile(name).laws:
            if law.held_out is not None:
                rows.append(_law(name, law))
    return pd.DataFrame(rows)


def _law(name: str, law: Any) -> dict[str, Any]:
    held = law.held_out
    return {
        "GPU": name,
        "operator": law.family.replace("_", " "),
        "dtype": "/".join(filter(None, (law.dtype, law.variant))),
        "mean (%)": round(100 * held.mean_ape, 1),
        "median (%)": round(100 * held.median_ape, 1),
        "P90 (%)": round(100 * held.p90_ape, 1),
        "rows": held.rows,
        "held out": held.split,
        "source": law.source.text,
    }


def _operators() -> None:
    frame = held_out_laws()
    gpu = st.selectbox("GPU", [ALL, *sorted(frame["GPU"].unique())], key="validation.gpu")
    shown = frame if gpu == ALL else frame[frame["GPU"] == gpu]
    figure = px.strip(shown, x="mean (%)", y="operator", color="GPU", hover_data=["dtype", "rows"])
    figure.update_layout(height=360, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    charts.draw(figure, "operator_errors")
    st.dataframe(shown, hide_index=True)
    without = sorted(set(list_profiles()) - set(frame["GPU"]))
    st.caption(f"No law of its own, so nothing to hold out: {', '.join(without)}.")


def _figures() -> None:
    bundled = "published figures, bundled"
    left, right = st.columns([2, 3])
    with right, st.expander("Upload measurements"):
        help = "Columns of the bundled file, or of closed-loop runs; see `sim validate serving`."
        uploading.upload("measured", "Measured serving runs (CSV)", help, "validation")
    keys = [bundled, *library.uploads("measured")]
    chosen = left.selectbox("Measurements", keys, format_func=library.title_of, key=state.key("measured"))
    path = predictions.bundled_figures() if chosen == bundled else library.path_of(chosen)
    rows = running.waited(lambda tick: work.predictions_of(path, tick))
    if rows is None or rows.empty:
        st.warning("No row of it could be simulated.")
        return
    columns = st.columns(3)
    for place, name in zip(columns, ("system", "gpu", "metric"), strict=True):
        label = {"gpu": "GPU"}.get(name, name.capitalize())
        value = place.selectbox(label, [ALL, *sorted(rows[name].unique())], key=f"validation.{name}.only")
        rows = rows if value == ALL else rows[rows[name] == value]
    if rows.empty:
        st.caption("Nothing was measured there.")
        return
    st.caption("Every figure is simulated now, as what it was measured on. Dotted: 20 % off.")
    charts.draw(predictions.figure(rows), "predicted")
    st.dataframe(predictions.summary(rows), hide_index=True)
    name = "reference.csv" if chosen == bundled else library.title_of(chosen)
    terminal.draw(f"sim validate serving {name}")


def serving_errors() -> pd.DataFrame:
    """One row per way of holding out and metric; percent."""
    rows = []
    for split, metrics in engine_costs_file().get("held_out", {}).items():
        for metric, error in metrics.items():
            numbers = {name: round(100 * error[f"{name}_ape"], 1) for name in ("mean", "median", "p90")}
            rows.append({"held out": split, "metric": metric, **numbers, "rows": error["rows"]})
    return pd.DataFrame(rows).rename(columns={"mean": "mean (%)", "median": "median (%)", "p90": "P90 (%)"})


def _serving() -> None:
    frame = serving_errors()
    st.caption(f"Whole serving runs, predicted against measured: {engine_costs_file()['source']}.")
    figure = px.bar(frame, x="median (%)", y="metric", color="held out", barmode="group", orientation="h")
    figure.update_layout(
        height=340, margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"orientation": "h", "y": -0.25}
    )
    charts.draw(figure, "serving_errors")
    st.dataframe(frame, hide_index=True)
    st.caption("`sim validate serving FILE` predicts measurements of your own.")
