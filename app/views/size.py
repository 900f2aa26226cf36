"""Size it: how many of which GPU serve this traffic within the objectives, and what they cost."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import charts, library, searching, sidebar, state, terminal, uploading
from app.question import SHIPPED, Question
from app.view import View
from hwprofiles import list_profiles, load_profile
from simulator.errors import SimError
from simulator.results.figures import PALETTE
from simulator.sizing import Prices
from simulator.sizing.report import OVER_TIME_HEADINGS, over_time_rows, sizing_html
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
    question = _ask(view)
    if question is None:
        return
    job: searching.Job | None = st.session_state.get(JOB)
    if job is None:
        return
    if job.running:
        st.fragment(_progress, run_every=0.5)(job)
    elif job.problem:
        st.error(job.problem, icon=":material/error:")
    elif job.found is not None:
        _over_time(job.found) if "over_time" in job.found else _answer(view, job.found)
    elif job.stopped:
        st.warning("Stopped.")


def _ask(view: View) -> Question | None:
    """The form, and its question begun where it was sent; None after an error, which is said."""
    with st.expander("Prices of your own"):
        help = "One line per GPU, such as `h100: 2.50`; what it does not name keeps the shipped price."
        uploading.upload("prices", "Prices in $ per GPU and hour (YAML)", help, "size")
    lists = [SHIPPED, *library.uploads("prices")]
    with st.form("size"):
        a, b, c = st.columns([4, 2, 2])
        quotes = a.container()
        widths = b.multiselect("GPUs per layer (TP)", [1, 2, 4, 8], [1, 2], key="size.tp")
        formats = c.multiselect("Weights", ["published", "fp8", "int4"], ["published"], key="size.dtypes")
        d, e, f = st.columns(3)
        prices = d.selectbox("Prices", lists, format_func=library.title_of, key=state.key("prices"))
        most = e.number_input("At most ($/h)", 0.0, 1e6, 0.0, step=10.0, key="size.cost", help="0: no limit.")
        interval = f.number_input(
            "Size every (s)", 0.0, 86_400.0, 0.0, step=300.0, key="size.interval",
            help="0: the whole. Else each interval by itself: what an autoscaler could save at most.",
        )  # fmt: skip
        try:
            priced = _priced(Question(view, (), (), (), prices=prices).quotes)
        except SimError as error:
            st.error(library.error_text(error))
            return None
        gpus = quotes.multiselect("GPUs", priced, list(GPUS[:1] + GPUS[2:4]), key="size.gpus")
        asked = st.form_submit_button("Find the cheapest", type="primary", icon=":material/search:")
    question = Question(view, tuple(gpus), tuple(widths), tuple(formats), most, prices, interval)
    try:
        terminal.draw(question.command)
        if len(question.fixed) > 1:
            st.download_button("fixed.yaml", question.fixed_yaml, "fixed.yaml", on_click="ignore")
        if asked:
            _start(question)
    except SimError as error:
        st.error(library.error_text(error), icon=":material/error:")
    return question


def _start(question: Question) -> None:
    earlier: searching.Job | None = st.session_state.pop(JOB, None)
    if earlier is not None and earlier.running:
        earlier.stop()
    st.session_state[JOB] = searching.start(question.prepare())


def _priced(prices: Prices) -> list[str]:
    return [name for name in list_profiles() if load_profile(name).name in prices]


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
    _downloads(found)


def _over_time(found: dict[str, Any]) -> None:
    over = found["over_time"]
    st.success(library.plain(found["headline"]), icon=":material/check_circle:")
    st.caption(library.plain(found["subtitle"]))
    st.dataframe(pd.DataFrame(over_time_rows(over), columns=OVER_TIME_HEADINGS), hide_index=True)
    intervals = pd.DataFrame(over["intervals"])
    figure = go.Figure()
    hours = intervals["start_s"] / 3600
    figure.add_scatter(
        x=hours, y=intervals["num_gpus"], line={"shape": "hv", "color": PALETTE[0]}, name="least"
    )
    figure.add_hline(y=over["fixed"]["peak_gpus"], line_dash="dot", annotation_text="fixed")
    figure.update_xaxes(title="hours")
    figure.update_yaxes(title="GPUs", rangemode="tozero")
    figure.update_layout(height=320, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    charts.draw(figure, "over_time")
    st.dataframe(intervals, hide_index=True)
    for line in found["provenance"]:
        st.caption(library.plain(line))
    _downloads(found)


def _downloads(found: dict[str, Any]) -> None:
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
