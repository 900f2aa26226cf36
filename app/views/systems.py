"""Systems: the serving systems side by side on one trace, and one scheduler's decisions, step by step."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import charts, library, pinned, running, sidebar, work
from app.view import View
from app.walk import Step, walk, words
from simulator import Deployment, Result, Trace
from simulator.comparison import compare
from simulator.errors import SimError
from simulator.results.figures import PALETTE
from simulator.scheduling.system import find_system, list_systems

__all__ = ["page"]

FIRST = ["vllm", "sglang", "tgi"]
MOST = 5
STATUS = {
    "recorded": "decisions identical to recorded ones",
    "read": "read from its source",
    "inferred": "inferred from descriptions",
}
LESSONS = {
    "Static against continuous batching": ["hf-static", "vllm"],
    "Prefill first against chunked prefill": ["vllm-0.6", "vllm"],
    "Reservation against paging": ["orca-max", "vllm"],
}


def page() -> None:
    """Draw the page."""
    view = sidebar.controls()
    if view is None:
        return
    st.markdown("### Systems")
    together, steps = st.tabs(["Side by side", "Step by step"], on_change="rerun", key="systems.tabs")
    if together.open:
        with together:
            _side_by_side(view)
    if steps.open:
        with steps:
            _step_by_step()


def _side_by_side(view: View) -> None:
    names = [system.name for system in list_systems()]
    default = [name for name in FIRST if name in names]
    chosen = st.multiselect("Serving systems", names, default, max_selections=MOST, key="systems.chosen")
    st.caption(f"On the traffic and hardware at the left. Limits are each system's own. {_traffic(view)}")
    bare = {"max_num_seqs": 0, "max_num_batched_tokens": 0, "max_model_len": 0, "options": ""}
    results: dict[str, Result] = {}
    for name in chosen:
        one = view.model_copy(update={**bare, "enable_prefix_caching": "default", "system": name})
        result = running.run(one, name)
        if result is not None:
            results[name] = result
    if len(results) > 1:
        st.dataframe(
            pinned.table(compare(list(results.values())), list(results)), hide_index=True, height="content"
        )
        left, right = st.columns(2)
        with left:
            charts.draw(charts.cdf_figure(results, "ttft", "TTFT"), "systems_ttft")
        with right:
            charts.draw(charts.cdf_figure(results, "tpot", "TPOT"), "systems_tpot")
    for name in chosen:
        system = find_system(name)
        st.markdown(
            f"**{name}** {system.version}: {system.summary}. :gray[{STATUS.get(system.status, system.status)}]"
        )


def _traffic(view: View) -> str:
    try:
        return f"{len(work.trace_of(view)):,} requests."
    except SimError as error:
        return library.error_text(error)


def _step_by_step() -> None:
    names = [system.name for system in list_systems()]
    lessons = {title: pair for title, pair in LESSONS.items() if set(pair) <= set(names)}
    a, b, c, d = st.columns([3, 1, 1, 1])
    title = a.selectbox("Lesson", [*lessons, "Two of my choice"], key="walk.lesson")
    requests = b.number_input("Requests", 2, 12, 6, key="walk.requests")
    prompt = c.number_input("Prompt (tokens)", 1, 20_000, 600, step=100, key="walk.prompt")
    blocks = d.number_input("KV cache (tokens)", 256, 200_000, 8192, step=256, key="walk.tokens")
    pair = lessons.get(title) or st.multiselect(
        "Systems", names, FIRST[:2], max_selections=2, key="walk.pair"
    )
    trace = small_trace(requests, prompt)
    st.caption(
        f"{requests} requests, 40 ms apart, prompts around {prompt} tokens, outputs of 4 to {4 * requests} tokens; "
        "llama-3.1-8b on an L40S. Rows are requests, columns iterations: dark is prefill, light is a decoded token."
    )
    columns = st.columns(max(len(pair), 1))
    for place, name in zip(columns, pair, strict=False):
        with place:
            _one_walk(name, trace, blocks)


def small_trace(requests: int, prompt: int) -> Trace:
    """Requests 40 ms apart whose prompts and outputs differ, so that something has to be decided."""
    inputs = [max(prompt * (1 + i % 3) // 2, 1) for i in range(requests)]
    outputs = [4 * ((5 * i) % requests + 1) for i in range(requests)]
    return Trace.from_columns([0.04 * i for i in range(requests)], inputs, outputs)


def small_deployment(name: str, tokens: int) -> Deployment:
    """A replica of system *name* with a KV cache of *tokens* tokens."""
    block = find_system(name).block_size
    return Deployment.of(
        system=name, gpu="l40s", num_gpu_blocks=max(tokens // block, 1), default_max_tokens="exact"
    )


def _one_walk(name: str, trace: Trace, tokens: int) -> None:
    st.markdown(f"**{name}**: {find_system(name).summary}")
    try:
        steps = walk(trace, small_deployment(name, tokens).resolve())
    except SimError as error:
        st.error(library.error_text(error))
        return
    if not steps:
        st.caption("Nothing was scheduled.")
        return
    charts.draw(_walk_figure(steps, trace), f"walk.{name}")
    at = st.slider("Iteration", 1, len(steps), 1, key=f"walk.at.{name}") if len(steps) > 1 else 1
    step = steps[at - 1]
    st.info(words(steps, at - 1))
    used = step.blocks_used / max(step.num_blocks, 1)
    st.progress(
        min(used, 1.0), text=f"KV cache: {step.blocks_used} of {step.num_blocks} blocks · {step.time:.3f} s"
    )
    with st.expander("All iterations in words"):
        rows = [
            {"#": i + 1, "s": round(step.time, 3), "decision": words(steps, i)}
            for i, step in enumerate(steps[:200])
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def _walk_figure(steps: list[Step], trace: Trace) -> go.Figure:
    rows = [trace.name(i) for i in range(len(trace))]
    figure = go.Figure()
    for kind, colour in (("prefill", PALETTE[0]), ("decode", "#9ec1f7"), ("preempted", PALETTE[5])):
        points = [
            (i + 1, name, tokens) for i, step in enumerate(steps) for name, tokens in _marks(step, kind)
        ]
        figure.add_scatter(
            x=[x for x, _, _ in points],
            y=[y for _, y, _ in points],
            customdata=[n for _, _, n in points],
            mode="markers",
            marker={"color": colour, "symbol": "square", "size": 9},
            name=kind,
            hovertemplate=f"iteration %{{x}}: %{{y}}, {kind}, %{{customdata}} tokens<extra></extra>",
        )
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], type="category")
    figure.update_xaxes(title="iteration")
    figure.update_layout(
        height=90 + 30 * len(rows),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.15},
    )
    return figure


def _marks(step: Step, kind: str) -> list[tuple[str, int]]:
    if kind == "prefill":
        return [(name, chunk) for name, chunk, _ in step.prefills]
    return [(name, 1) for name in (step.decodes if kind == "decode" else step.preempted)]
