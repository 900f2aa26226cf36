"""Size it: how many of which GPU serve this traffic within the objectives, and what they cost."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import charts, library, searching, sidebar, state, work
from app.view import View
from hwprofiles import load_profile
from simulator.errors import ConfigurationError, SimError
from simulator.results.figures import PALETTE
from simulator.sizing import Prices, Search, SearchSpace, parse_slo
from simulator.sizing.report import sizing_html
from simulator.sizing.wording import headline, paragraphs

__all__ = ["page"]

GPUS = ("h100-sxm-80gb", "h200-sxm-141gb", "a100-sxm-80gb", "l40s-48gb", "mi300x-192gb")
JOB = "size.job"


def page() -> None:
    """Draw the page."""
    view = sidebar.controls()
    if view is None:
        return
    st.markdown("### Size it")
    st.caption(
        "The cheapest deployment that serves the traffic at the left within the objectives at the left."
    )
    with st.form("size"):
        a, b, c, d = st.columns([4, 2, 2, 2])
        prices = Prices.load()
        gpus = a.multiselect("GPUs", _priced(prices), list(GPUS[:1] + GPUS[2:4]), key="size.gpus")
        widths = b.multiselect("GPUs per layer (TP)", [1, 2, 4, 8], [1, 2], key="size.tp")
        formats = c.multiselect("Weights", ["published", "fp8", "int4"], ["published"], key="size.dtypes")
        most = d.number_input("At most ($/h)", 0.0, 1e6, 0.0, step=10.0, key="size.cost", help="0: no limit.")
        asked = st.form_submit_button("Find the cheapest", type="primary", icon=":material/search:")
    st.code(_command(view, gpus, widths, formats, most), language="bash", wrap_lines=True)
    if asked:
        _start(view, gpus, widths, formats, most, prices)
    job: searching.Job | None = st.session_state.get(JOB)
    if job is None:
        return
    if job.running:
        st.fragment(_progress, run_every=0.5)(job)
    elif job.problem:
        st.error(job.problem, icon=":material/error:")
    elif job.found is not None:
        _answer(view, job.found)
    elif job.stopped:
        st.warning("Stopped.")


def _priced(prices: Prices) -> list[str]:
    from hwprofiles import list_profiles

    return [name for name in list_profiles() if load_profile(name).name in prices]


def _slos(view: View) -> list[str]:
    return [f"{name}:p99:{ms:g}" for name, ms in view.goodput.items()]


def _start(
    view: View, gpus: list[str], widths: list[int], formats: list[str], most: float, prices: Prices
) -> None:
    earlier: searching.Job | None = st.session_state.get(JOB)
    if earlier is not None and earlier.running:
        earlier.stop()
    try:
        if not view.goodput:
            raise ConfigurationError("objectives: none is set; state at least one at the left")
        base = view.deployment().model_copy(update={"num_replicas": 1})
        dtypes = [None if name == "published" else name for name in formats]
        space = SearchSpace(base, gpus, [view.system], widths, dtypes, (None,), (None,))
        trace = work.trace_of(view, spread="uniform")
        search = Search(trace, parse_slo(_slos(view), view.model), space, prices, most or float("inf"))
        st.session_state[JOB] = searching.start(search)
    except SimError as error:
        st.session_state.pop(JOB, None)
        st.error(library.error_text(error), icon=":material/error:")


def _progress(job: searching.Job) -> None:
    if not job.running:
        st.rerun()
    with st.status(job.said[-1] if job.said else "screening the choices", expanded=True):
        for line in job.said:
            st.markdown(library.plain(line))
    st.button("Stop", icon=":material/stop_circle:", on_click=job.stop)


def _answer(view: View, found: dict[str, Any]) -> None:
    st.success(library.plain(headline(found)), icon=":material/check_circle:")
    for line in paragraphs(found):
        st.markdown(f"- {library.plain(line.strip())}")
    st.markdown("**Plans**, cheapest first; follow a link to its simulation")
    rows = [_row(view, plan) for plan in found["ranking"]]
    link = st.column_config.LinkColumn("simulation", display_text="open")
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config={"simulation": link})
    left, right = st.columns(2)
    with left:
        points, front = found["pareto"]["cost_latency"], found["pareto"]["cost_latency_front"]
        charts.draw(
            _front(points, front, "usd_per_hour", "worst_ratio", "$ per hour", "share of the limit used"),
            "cost",
        )
    with right:
        points, front = found["pareto"]["throughput_speed"], found["pareto"]["throughput_speed_front"]
        names = ("tokens_per_s_per_user", "tokens_per_s_per_gpu", "tokens/s of a user", "tokens/s per GPU")
        charts.draw(_front(points, front, *names), "speed")
    for line in found["would_change"]:
        st.markdown(f"- Would change the answer: {library.plain(line)}")
    with st.container(horizontal=True):
        page_text = sizing_html(found)
        st.download_button("Report (HTML)", page_text, "size.html", "text/html", on_click="ignore")
        st.download_button(
            "Numbers (JSON)", json.dumps(found, indent=2), "size.json", "application/json", on_click="ignore"
        )


def _row(view: View, plan: dict[str, Any]) -> dict[str, Any]:
    deployment, run = plan["deployment"], plan["run"]
    worst = max((one["ratio"] or float("inf") for one in run["objectives"]), default=None) if run else None
    fields = ("gpu", "system", "tensor_parallel_size", "num_replicas", "dtype")
    chosen = view.model_copy(update={name: deployment[name] for name in fields if name in deployment})
    return {
        "plan": plan["name"],
        "replicas": deployment["num_replicas"],
        "GPUs": plan["num_gpus"],
        "$/h": round(plan["usd_per_hour"], 2),
        "requests/s per replica": round(plan["capacity"]["request_rate"], 2),
        "of the limit (%)": None if worst is None else round(100 * worst, 1),
        "simulation": f"/?{state.address(chosen)}",
    }


def _front(points: list[Any], front: list[Any], x: str, y: str, x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    for rows, mode, name in ((points, "markers", "plans"), (front, "lines", "Pareto front")):
        text = [row.get("name", "") for row in rows]
        known = [(row[x], row[y], t) for row, t in zip(rows, text, strict=True) if row[x] is not None]
        figure.add_scatter(
            x=[a for a, _, _ in known],
            y=[b for _, b, _ in known],
            text=[t for _, _, t in known],
            mode=mode,
            name=name,
            marker_color=PALETTE[0],
            hovertemplate="%{text}<br>%{x:,.4g}, %{y:,.4g}<extra></extra>",
        )
    figure.update_xaxes(title=x_title, rangemode="tozero")
    figure.update_yaxes(title=y_title, rangemode="tozero")
    figure.update_layout(height=320, margin={"l": 8, "r": 8, "t": 8, "b": 8}, showlegend=False)
    return figure


def _command(view: View, gpus: list[str], widths: list[int], formats: list[str], most: float) -> str:
    trace = "traffic.jsonl" if view.described else library.title_of(view.source)
    words = f"sim size {trace} --model {library.title_of(view.model)} --systems {view.system}"
    words += "".join(f" --slo {slo}" for slo in _slos(view))
    words += f" --gpus {','.join(gpus)} --tp {','.join(map(str, widths))} --dtypes {','.join(formats)}"
    words += " --max-num-seqs default --max-num-batched-tokens default"
    words += f" --max-cost {most:g}" if most else ""
    return f"{view.generate_command}\n{words}" if view.described else words
